"""The terminal's report fits its width, names what is missing, and claims nothing without seeds."""

import io
import re

import pytest
from rich.console import Console
from support.reported_study import LOSSES, complete, finish, in_full, partial, plan

from attnlab.analysis.analysis import analyse
from attnlab.reporting import TerminalReport, write_results
from attnlab.reporting.pages import markdown, page


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
