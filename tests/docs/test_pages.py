"""What README and documentation show is so: links, file names, numbers and commands."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml
from support.pages import FENCE, ROOT, WRITTEN, anchors, blocks, commands, links, python_block

from attnlab import __version__, analyse, check, load_study
from attnlab.cli import app
from attnlab.config import ConfigError
from attnlab.study.targets import addition

IDS = [page.relative_to(ROOT).as_posix() for page in WRITTEN]
GENERATED = {  # pages of the built site that no file holds
    ROOT / "docs/reference" / name
    for name in ("api.md", "command-line.md", "settings.md", "source-files.md")
}
SHOWN = commands()
FILES_OF_CLUSTERS = [
    block
    for block in (*blocks("bash"), *blocks("yaml"))
    if block.page == "docs/guides/more-machines.md"
]
FILES = {"my_study.py": "SlidingWindow(window=w)", "moving_average.py": "class MovingAverage("}


@pytest.mark.parametrize("page", WRITTEN, ids=IDS)
def test_every_link_leads_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        if target in GENERATED:
            continue
        assert target.exists(), f"{path} in {page.name}"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor} in {page.name}"


@pytest.mark.parametrize("page", WRITTEN, ids=IDS)
def test_every_file_that_is_named_is_there(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    top = "src|tests|docs|results|published|benchmarks"
    packages = "|".join(path.name for path in (ROOT / "src/attnlab").iterdir() if path.is_dir())
    for name in re.findall(rf"`((?:{top})/[\w./-]+|(?:{packages})/[\w./-]*)`", prose):
        if re.match(rf"(?:{top})/", name):
            there = ROOT / name
            made = name.startswith("results/") and re.search(
                "quickstart|mine|my_study|compare", name
            )
            assert made or there.exists(), f"{name} in {page.name}"
        else:
            assert (ROOT / "src/attnlab" / name).exists(), f"{name} in {page.name}"


def test_every_decision_is_in_the_index():
    listed = {path for path, _ in links(ROOT / "docs/decisions/index.md")}
    there = {path.name for path in (ROOT / "docs/decisions").glob("*.md")} - {"index.md"}
    assert listed == there


def test_the_verdict_of_the_readme_is_that_of_the_results():
    quoted = re.findall(r"^> (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert " ".join(quoted) == " ".join(analyse(ROOT / "published/mechanisms").headline)


def test_the_times_of_decoding_are_those_that_ship():
    page = (ROOT / "docs/guides/benches.md").read_text()
    points = json.loads((ROOT / "published/decode/bench.json").read_text())["points"]
    rows = re.findall(r"^\| ([\w ,-]+) ((?:\| [\d.]+ ){4})\| \S+ \w+ \|$", page, re.MULTILINE)
    times = [[f"{float(time):.2f}" for time in cells.split("|")[1:]] for _, cells in rows]
    measured: dict[str, list[str]] = {}
    for point in sorted(points, key=lambda point: point["context"]):
        if point["batch"] == 1:
            measured.setdefault(point["variant"], []).append(f"{1000 * point['seconds']:.2f}")
    assert sorted(times) == sorted(measured.values())
    assert len(times) == 6


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert {"message", "title", "authors"} <= citation.keys()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_of_checks_lists_every_property():
    (checked,) = check("identity", quick=True)
    page = (ROOT / "docs/guides/checks.md").read_text()
    _, *rows = re.findall(r"^\| ([A-Za-z][^|]+) \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(result.name for result in checked.results)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that commands of the pages refer to."""
    for name, marker in FILES.items():
        (tmp_path / name).write_text(python_block(marker))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("shown", SHOWN, ids=[" ".join(one.words)[:60] for one in SHOWN])
def test_the_command_line_accepts_it(shown, files):
    name, *words = shown.words
    group = typer.main.get_command(app)
    assert name in group.commands, shown.page
    command = group.commands[name]
    if not shown.whole:
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}
        return
    given = command.make_context(name, words).params
    if name in ("run", "plan"):
        study = load_study(given["study"])
        if given.get("add"):
            study = study.add(dict(map(addition, given["add"])))
        if given.get("only"):
            study = study.only(given["only"].split(","))
        overrides = [change for change in given["overrides"] or [] if "fla:" not in change]
        if shown.fails:
            with pytest.raises(ConfigError):
                study.override(overrides)
        else:
            study.override(overrides)


@pytest.mark.parametrize("block", FILES_OF_CLUSTERS, ids=lambda block: block.text[:20])
def test_a_file_for_a_cluster_is_short_and_its_commands_are_accepted(block):
    content = yaml.safe_load(block.text) if block.language == "yaml" else None
    assert content is None or isinstance(content, dict)
    assert len(block.text.splitlines()) < 30
    (line,) = re.findall(r"(?:-- |entrypoint: )(attnlab run .*)", block.text)
    _, name, *words = shlex.split(line)
    given = typer.main.get_command(app).commands[name].make_context(name, words).params
    assert given["engine"] == "ray"


def test_ray_has_the_options_that_the_files_use():
    scripts = pytest.importorskip("ray.scripts.scripts", reason="Ray is not installed")
    start = {option for parameter in scripts.start.params for option in parameter.opts}
    for block in FILES_OF_CLUSTERS:
        for command in re.findall(r"ray symmetric-run (.*) -- ", block.text.replace("\\\n", "")):
            used = set(re.findall(r"--[a-z-]+", command))
            assert {"--address", "--min-nodes"} < used <= start | {"--min-nodes"}


def test_there_are_commands_in_readme_and_pages():
    pages = {Path(shown.page).name for shown in SHOWN}
    assert {"README.md", "tutorial.md", "own-study.md", "life-of-a-run.md", "benches.md"} <= pages
