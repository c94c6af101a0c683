"""Pages and the generated reference are true: links, files, numbers, commands, settings, names."""

import dataclasses
import json
import os
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer.main
import yaml
from support import reported_study
from support.pages import FENCE, ROOT, WRITTEN, anchors, blocks, commands, links, python_block

import attnlab
from attnlab import __version__, analyse, check, load_study
from attnlab.cli import app
from attnlab.config import Choice, ConfigError
from attnlab.data import DataConfig
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import FeedForward
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
        if target.name == "report.html":  # made from the runs
            target = target.with_name("study.json")
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
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
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


@pytest.fixture
def generate(monkeypatch):
    """The modules of docs/generate, importable."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/generate"))
    yield
    for name in ("api", "command_line", "docstrings", "settings", "source_files", "site_hook"):
        sys.modules.pop(name, None)


def test_every_field_of_every_kind_has_a_row(generate):
    import settings

    page = settings.page()
    for family in (MechanismConfig, DataConfig, FeedForward):
        for cls in family.kinds.values():
            if not cls.__module__.startswith("attnlab."):
                continue
            section = page.partition(f"### {cls.__name__}\n")[2].partition("\n### ")[0]
            assert f"kind `{cls.name()}`" in section
            for field in dataclasses.fields(cls):
                assert f"| `{field.name}` |" in section, cls
    for cls in (attnlab.RunConfig, attnlab.TrainConfig, attnlab.ModelConfig, attnlab.Study):
        section = page.partition(f"### {cls.__name__}\n")[2].partition("\n### ")[0]
        assert all(f"| `{f.name}` |" in section for f in dataclasses.fields(cls)), cls
        assert not issubclass(cls, Choice)


def test_a_row_has_type_default_and_comment(generate):
    import settings

    known = settings.classes()
    (betas,) = [one for one in known["TrainConfig"].fields if one.name == "betas"]
    assert (betas.type, betas.default) == ("tuple[float, float]", "(0.9, 0.95)")
    (steps,) = [one for one in known["Extension"].fields if one.name == "steps"]
    assert steps.default is None
    assert "shorter run" in steps.comment


def test_every_command_and_option_is_listed(generate):
    import command_line
    import typer.main

    from attnlab.cli import app

    page = command_line.page()
    for name, command in typer.main.get_command(app).commands.items():
        section = page.partition(f"## attnlab {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else None
            assert shown is None or f"`{shown}" in section, (name, shown)


def test_every_exported_name_is_listed(generate):
    import api

    page = api.page()
    for name in attnlab.__all__:
        assert f"::: attnlab.{name}\n" in page or name == "__version__"
    assert "## Other names" not in page


def test_every_file_of_the_source_is_listed(generate):
    import source_files

    page = source_files.page()
    for path in source_files.SOURCE.rglob("*.py"):
        if path.read_text(encoding="utf-8").strip():
            assert f"| `{path.relative_to(source_files.SOURCE).as_posix()}` |" in page


def test_every_public_name_is_there():
    assert all(getattr(attnlab, name) is not None for name in attnlab.__all__)
    with pytest.raises(AttributeError, match="attnlab has no 'Nothing'"):
        attnlab.Nothing  # noqa: B018


def test_links_to_results_lead_into_the_site(generate):
    import site_hook

    page = ROOT / "docs/guides/benches.md"
    text = "[a](../../published/mechanisms/report.md) [b](checks.md#x) [c](../../CHANGELOG.md)"
    assert site_hook.relink(text, page, "guides/benches.md") == (
        "[a](../published/mechanisms/report.html) [b](checks.md#x) [c](../changelog.md)"
    )


@pytest.mark.parametrize("form", ["report.md", "report.html"])
def test_a_link_to_a_report_is_to_the_page_that_the_site_makes(generate, form):
    import site_hook

    page = ROOT / "published/README.md"
    shown = site_hook.relink(f"[a](kv_heads/{form}) [b](none/{form})", page, "changelog.md")
    assert shown == f"[a](published/kv_heads/report.html) [b](none/{form})"


def test_the_page_of_a_report_is_made_from_its_runs_and_kept(generate, tmp_path, monkeypatch):
    import site_hook

    made = list[str]()
    monkeypatch.setattr(site_hook, "ROOT", tmp_path)
    monkeypatch.setattr(site_hook, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr("attnlab.reporting.pages.page", lambda analysis: made.append("") or "new")
    code, study = (tmp_path / name for name in ("src/attnlab/record/a.py", "published/s"))
    for folder in (code.parent, study):
        folder.mkdir(parents=True)
    code.touch()
    reported_study.complete(study)
    report = study / "report.html"
    (page,) = site_hook.report_pages({report}).values()
    assert page.read_text() == "new"
    site_hook.report_pages({report})
    assert len(made) == 1
    os.utime(code, (2**31, 2**31))
    site_hook.report_pages({report})
    assert len(made) == 2
    assert not report.exists()


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        if page.parent.name != "decisions":
            assert f" {page.relative_to(ROOT / 'docs').as_posix()}\n" in listed, page


def test_examples_in_docstrings_become_code(generate):
    pytest.importorskip("griffe", reason="the extra `docs` is not installed")
    import docstrings

    shown = docstrings.shown("Add.\n\n>>> 1 + 1\n2\n\nArgs:\n    a, b: numbers.")
    assert shown == (
        "Add.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nArgs:\n    a: numbers.\n    b: numbers."
    )
