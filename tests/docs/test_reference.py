"""The generated reference lists everything: settings, commands, exported names."""

import dataclasses
import sys

import pytest
from support.pages import ROOT

import attnlab
from attnlab.config import Choice
from attnlab.data import DataConfig
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import FeedForward


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
