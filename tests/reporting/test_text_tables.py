"""Published numbers beside those found, and hypotheses in the reports."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.hypotheses.ordered import Ordered
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.tables.text_tables import published_tables

LOSSES = {"mha": steady(5.1, 1), "delta": steady(5.0, 3), "identity": steady(5.4, 4)}
SOURCED = {"variants": ("delta", "mha"), "source": "Somebody 2020"}


def analysed(folder, hypothesis):
    return analyse(write_study(folder, LOSSES, hypotheses=[hypothesis.to_dict()], baseline="mha"))


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
