"""Every command that the documentation shows is one that the command line accepts."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml
from support.pages import blocks, commands, python_block

from attnlab import load_study
from attnlab.cli import app
from attnlab.config import ConfigError
from attnlab.study.targets import addition

SHOWN = commands()
FILES = {"my_study.py": "SlidingWindow(window=w)", "moving_average.py": "class MovingAverage("}


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


FILES_OF_CLUSTERS = [
    block
    for block in (*blocks("bash"), *blocks("yaml"))
    if block.page == "docs/guides/more-machines.md"
]


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
