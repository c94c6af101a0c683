"""The report of a terminal fits its width; hypotheses stand beside what was published."""

import io
import re

import pytest
from rich.console import Console
from support.reported_study import (
    LOSSES,
    complete,
    finish,
    in_full,
    partial,
    plan,
    steady,
    write_study,
)

from attnlab.analysis.analysis import analyse
from attnlab.analysis.hypotheses.ordered import Ordered
from attnlab.reporting import TerminalReport, write_results
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.tables.text_tables import published_tables


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "results" / "mechanisms"


def in_terminal(study_dir, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(TerminalReport(analyse(study_dir)))
    return console.file.getvalue()


def test_a_study_may_have_no_baseline_and_may_have_a_test_split(study_dir):
    plan(study_dir, baseline=None, variants=("mha", "identity"))
    for variant in ("mha", "identity"):
        for seed in (0, 1, 2):
            finish(study_dir, variant, seed, test_loss=LOSSES[variant] - 0.1)
    analysis = in_full(study_dir, "test_loss")
    report, html = markdown(analysis, None), page(analysis)
    assert "| test loss (nats/token) |" in report
    assert "| 5.0000 ± 0.0000 |" in report
    assert "| validation loss (nats/token) |" in report
    assert "Test loss by variant" in html
    assert "None" not in report + in_terminal(study_dir, 140)
    assert ">None<" not in html


@pytest.mark.parametrize("written", ["report.md", "terminal"])
def test_one_seed_gets_no_verdict(study_dir, written):
    complete(study_dir, seeds=(0,))
    write_results(study_dir)
    text = in_terminal(study_dir, 100)
    if written == "report.md":
        text = (study_dir / written).read_text()
    assert "One seed per variant: no intervals." in " ".join(text.split())
    assert "letters" not in text
    assert "±" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 160, 220])
def test_the_terminal_table_fits_and_names_stay_whole(study_dir, width):
    complete(study_dir)
    lines = in_terminal(study_dir, width).splitlines()
    assert max(len(line) for line in lines) <= width
    rows = [line for line in lines if re.match(r"\d  [a-c]  ", line)]
    assert len(rows) == len(LOSSES)
    assert "hybrid 3:1  " in rows[0]
    assert "5.0507 ± 0.0070" in rows[0]
    assert ("mechanism" in lines[1]) == (width >= 160)
    assert any("not shown at this width: " in line for line in lines) == (width < 220)


def test_the_terminal_lists_failures(study_dir):
    partial(study_dir)
    text = in_terminal(study_dir, 140)
    assert "identity, seed 2: diverged: loss is nan (2 of 3 seeds finished)" in text
    assert "2/3" in text


def test_the_terminal_says_the_verdict_in_two_sentences_and_how_sure_it_is(study_dir):
    complete(study_dir)
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(TerminalReport(in_full(study_dir)))
    text = console.file.getvalue()
    assert "The hybrid is best.\nThe floor is far.\n3 seeds per variant;" in text
    assert text.splitlines()[1].split()[:3] == ["#", "letters", "variant"]


DELTA_LOSSES = {"mha": steady(5.1, 1), "delta": steady(5.0, 3), "identity": steady(5.4, 4)}
SOURCED = {"variants": ("delta", "mha"), "source": "Somebody 2020"}


def analysed(folder, hypothesis):
    return analyse(
        write_study(folder, DELTA_LOSSES, hypotheses=[hypothesis.to_dict()], baseline="mha")
    )


@pytest.mark.parametrize(("published", "holds"), [(3.4, "yes"), (3.25, "no"), (3.49, "no")])
def test_a_published_difference_is_compared_with_the_interval_of_the_one_found(
    tmp_path, published, holds
):
    """Delta is better than mha by 0.1000 nats/token here, to a part of a thousandth or so."""
    numbers = (("delta", published), ("mha", 3.5), ("gone", 4.0))
    (table,) = published_tables(analysed(tmp_path, Ordered(**SOURCED, published=numbers)))
    assert table.heading[4:6] == ["published Δ mha", "Δ mha here"]
    delta, mha, gone = (line[4:] for line in table.lines)
    assert delta[0] == f"{published - 3.5:+.3g}"
    assert delta[1].startswith("-0.1000 ± 0.0")
    assert delta[2] == holds
    assert mha == ["0", "0", ""]
    assert gone == ["+0.5", "–", "–"]


def test_of_published_numbers_other_than_losses_no_differences_are_shown(tmp_path):
    numbers = (("delta", 30.0), ("mha", 33.0))
    hypothesis = Ordered(**SOURCED, published=numbers, measure="perplexity per word")
    (table,) = published_tables(analysed(tmp_path, hypothesis))
    assert len(table.heading) == len(table.lines[0]) == 4


def test_published_and_found_stand_side_by_side_in_the_reports(tmp_path):
    numbers = (("delta", 3.25), ("mha", 3.5), ("gone", 4.0))
    hypothesis = Ordered(**SOURCED, wording="Delta <beats> it.", published=numbers)
    analysis = analysed(tmp_path, hypothesis)
    (table,) = published_tables(analysis)
    assert table.heading[1:3] == ["published loss, nats/token", "validation loss here (nats/token)"]
    assert [line[:2] for line in table.lines] == [["delta", "3.25"], ["mha", "3.5"], ["gone", "4"]]
    assert table.lines[0][2].startswith("5.0000 ± ")
    assert [line[3] for line in table.lines] == ["1", "2", "–"]
    text, html = markdown(analysis, None), page(analysis)
    for shown in (text, html):
        assert "Hypotheses" in shown
        assert "Somebody 2020" in shown
        assert "order, spread and differences are compared" in shown
        assert "“Delta &lt;beats" in shown
    row = "| The order is delta and mha, the best first. | “Delta &lt;beats> it.” Somebody 2020 | "
    assert f"{row}**supported** | delta is better than mha by " in text
    assert "| delta | 3.25 | 5.0000 ± " in text
    assert '<strong class="ruling supported">supported</strong>' in html
