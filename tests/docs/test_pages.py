"""Pages and the generated reference are true: links, files, numbers, commands, settings, names.

The Python that the documentation shows runs as it stands. What users read uses the standard terms
of the field and of statistics, not private ones.
"""

import ast
import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer.main
import yaml
from support import ROOT, fake_workers, reported_study, tiny_study
from typer.testing import CliRunner

import attnlab
from attnlab import __version__, analyse, assert_correct, check, load_study
from attnlab.cli import app
from attnlab.config import Choice, ConfigError, load_file
from attnlab.data import DataConfig, Places
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import FeedForward
from attnlab.reporting import write_results
from attnlab.reporting.files import write_report
from attnlab.runner.execute import corpus_of, execute
from attnlab.study.targets import addition
from attnlab.training.run import Run

WRITTEN = (
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "published/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
)
get_command = cache(typer.main.get_command)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    page: str  # relative to the repository
    language: str  # "" for shell
    text: str


@cache
def blocks(language: str) -> list[Block]:
    """Return every code block of one language, in all pages."""
    return [
        Block(page.relative_to(ROOT).as_posix(), language, text)
        for page in WRITTEN
        for found, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


@cache
def python_block(marker: str) -> str:
    """Return the text of the block of Python that contains `marker`; it is the same everywhere."""
    (found,) = {block.text for block in blocks("python") if marker in block.text}
    return found


class Command(NamedTuple):
    page: str
    words: list[str]  # after `attnlab`
    whole: bool  # False: named in a sentence, perhaps without its arguments
    fails: bool  # shown with a prompt and its error


def commands() -> list[Command]:
    """Return every `attnlab` command that is shown, in blocks and within sentences."""
    found = list[Command]()
    for block in blocks(""):
        for line in block.text.splitlines():
            if re.match(r"(\$ )?(\.venv/bin/)?attnlab ", line):
                words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
                found.append(Command(block.page, words, True, line.startswith("$ ")))
    for page in WRITTEN:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for span in re.findall(r"`attnlab ([a-z]+(?: [^`]+)?)`", prose):
            name = page.relative_to(ROOT).as_posix()
            found.append(Command(name, shlex.split(span), False, False))
    return found


def links(page: Path) -> list[tuple[str, str]]:
    """Return path and anchor of every link of a page that leads to another file."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose)
    return [(path, anchor) for path, anchor in found if "://" not in path]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower() for title in titles)
    return {re.sub(r"\s+", "-", title) for title in plain}


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
            target = target.with_name("runs.jsonl.gz")
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
                "quickstart|mine|my_study|compare|probe|STUDY", name
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
    group = get_command(app)
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
    given = get_command(app).commands[name].make_context(name, words).params
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


@pytest.fixture(scope="module")
def generate():
    """The modules of docs/generate, importable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs/generate"))
        yield
    for name in ("docstrings", "reference", "settings", "site_hook"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def page_of_settings(generate):
    """The reference of all settings, which takes two seconds to make."""
    import settings

    return settings.page()


def test_every_field_of_every_kind_has_a_row(page_of_settings):
    page = page_of_settings
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


def test_a_mechanism_has_its_equation_its_source_and_what_it_costs(page_of_settings):
    page = page_of_settings
    kinds = [c for c in MechanismConfig.kinds.values() if c.__module__.startswith("attnlab.mech")]
    assert len(kinds) > 10
    for cls in kinds:
        section = page.partition(f"### {cls.__name__}\n")[2].partition("\n### ")[0]
        assert re.search(r"^    \w.* = ", section, re.MULTILINE), cls
        assert re.search(r"\b20\d\d\b", section) or cls.name() == "identity", cls
        assert re.search(r"\b(cost|costs|state|bound)\b", section), cls


def test_a_mechanism_has_how_it_did_as_the_published_reports_say(generate, tmp_path, monkeypatch):
    import settings

    row = next(
        line
        for line in (settings.PUBLISHED / "mechanisms/report.md").read_text().splitlines()
        if line.startswith("| 1 |")
    )
    _, place, _, variant, loss, difference, standing = map(str.strip, row.split("|")[:7])
    page = settings.page()
    gated = page.partition("### GatedDeltaNet\n")[2].partition("\n### ")[0]
    assert f"| `mechanisms` | {variant} | {place} of 11 | {loss} " in gated
    assert f"| {difference} | {standing} |" in gated
    report = tmp_path / "zoo" / "report.md"
    report.parent.mkdir()
    lines = (
        "| # | variant | accuracy (%) | Δ best | vs baseline | mechanism |",
        "|--:|---|---|---|---|---|",
        "| 1 | both | 9 | -1 | better | gla, mla in layer 3 |",
        "| 2 | gla\\|2 | 8 | -2 | worse | gla |",
        "| 3 | gla_3 | 7 | -3 | worse | gla |",
        "| – | gla_4 | 10 | – | – | gla |",
    )
    report.write_text("\n".join(lines))
    monkeypatch.setattr(settings, "PUBLISHED", tmp_path)
    assert settings.how_it_did("gla")[-2:] == [
        "| `zoo` | gla\\|2 | 2 of 3 | 8 accuracy (%) | -2 | worse |",
        "",
    ]
    assert settings.how_it_did("kda") == ["How it did: no published study has it in all layers.\n"]


def test_a_row_has_type_default_and_comment(generate):
    import settings

    known = settings.classes()
    (betas,) = [one for one in known["TrainConfig"].fields if one.name == "betas"]
    assert (betas.type, betas.default) == ("tuple[float, float]", "(0.9, 0.95)")
    (steps,) = [one for one in known["Extension"].fields if one.name == "steps"]
    assert steps.default is None
    assert "shorter run" in steps.comment


def test_every_command_and_option_is_listed(generate):
    import reference

    page = reference.command_line()
    for name, command in get_command(app).commands.items():
        section = page.partition(f"## attnlab {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else None
            assert shown is None or f"`{shown}" in section, (name, shown)


def test_every_exported_name_is_listed(generate):
    import reference

    page = reference.api()
    for name in attnlab.__all__:
        assert f"::: attnlab.{name}\n" in page or name == "__version__"
    assert "## Other names" not in page


def test_every_file_of_the_source_is_listed(generate):
    import reference

    page = reference.source_files()
    for path in reference.SOURCE.rglob("*.py"):
        if path.read_text(encoding="utf-8").strip():
            assert f"| `{path.relative_to(reference.SOURCE).as_posix()}` |" in page


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


ALL = blocks("python")
RUN_ELSEWHERE = (
    *("attnlab.run(", "def test_", 'load_run("my_model")', "class MovingAverage("),
    *("class FirstOutput(", "comprehensive_results.json", "from moving_average import"),
)


@pytest.mark.parametrize("block", ALL, ids=[f"{b.page}:{b.text[:30]!r}" for b in ALL])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # users' snippets do that
def test_every_snippet_runs(block, tmp_path, monkeypatch):
    code = compile(block.text, block.page, "exec")
    if any(marker in block.text for marker in RUN_ELSEWHERE):
        return
    monkeypatch.chdir(ROOT)
    exec(code, {"__name__": "snippet", "__doc__": "A question?"})


def test_the_study_of_the_readme_loads(tmp_path):
    path = tmp_path / "my_study.py"
    path.write_text(python_block("SlidingWindow(window=w)"))
    study = load_study(str(path))
    assert next(iter(study.variants)) == "mha"
    layers = study.variants["hybrid"].model.per_layer()
    assert [layer.kind() for layer in layers] == ["gated_delta_net"] * 3 + ["grouped_query"]


def test_the_hybrids_have_attention_where_the_page_says():
    names: dict[str, Any] = {}
    exec(python_block("spread_evenly"), names)
    variants, n_layers = names["variants"], names["base"].model.n_layers
    placed = {
        name: [i for i, m in enumerate(c.model.per_layer()) if m == names["attention"]]
        for name, c in variants.items()
    }
    assert placed["at_1"] == [1]
    assert placed["first_n_1"] == [0]
    assert placed["last_n_1"] == placed["spread_evenly_1"] == [n_layers - 1]
    assert len(variants) == 1 + 3 * (n_layers - 1)


def test_the_sweep_varies_the_width():
    names: dict[str, Any] = {}
    exec(python_block("width_{width}"), names)
    assert [config.model.d_model for config in names["variants"].values()] == [32, 64, 128]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_results_snippet_prints_the_ranking(tmp_path, monkeypatch, capsys):
    study_dir = tmp_path / "results" / "mechanisms"
    shutil.copytree(ROOT / "published" / "mechanisms", study_dir)
    write_results(study_dir)
    monkeypatch.chdir(tmp_path)
    exec(python_block("comprehensive_results.json"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("1. linear: Loss 4.6142")


def test_a_wrong_setting_of_the_mechanism_is_an_error(tmp_path):
    (tmp_path / "moving_average.py").write_text(python_block("class MovingAverage("))
    with pytest.raises(ConfigError, match="decay: must be in"):
        load_file(tmp_path / "moving_average.py").MovingAverage(decay=2.0)


def test_the_mechanism_that_hands_keeps_the_contract(tmp_path):
    path = tmp_path / "first_output.py"
    path.write_text(python_block("class FirstOutput("))
    assert_correct(load_file(path).FirstOutput(adds=True), quick=True)


def test_the_mechanism_is_trained(tmp_path, monkeypatch):
    (tmp_path / "moving_average.py").write_text(python_block("class MovingAverage("))
    monkeypatch.chdir(tmp_path)
    change = ["model.mechanisms.0=moving_average.py:MovingAverage"]
    config = tiny_study.study.only(["mha"]).override(change).variants["mha"]
    run = Run(variant="mine", config=config)
    places = Places(None, tmp_path / "cache")
    list(execute(run, tmp_path, "x", places, torch.device("cpu")))
    assert (tmp_path / "mine/seed-0/summary.json").is_file()


def test_the_study_with_ones_own_mechanism_runs_from_another_folder(tmp_path, monkeypatch):
    """The commands of the page: run, run again, sample, export, from two working directories."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/moving_average.py").write_text(python_block("class MovingAverage("))
    (tmp_path / "mine/my_study.py").write_text(python_block("from moving_average import"))
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
    for name in ("write_report", "write_results"):  # which take longer than training
        monkeypatch.setattr(f"attnlab.runner.run.{name}", analyse)
    monkeypatch.chdir(tmp_path)
    short = ["train.steps=2", "train.warmup_steps=1", "data.max_bytes=100000", "model.d_model=16"]
    small = [*short, "train.batch_size=1", "train.seq_len=32", "--seeds", "1", "--device", "cpu"]
    only = ["--only", "moving_average", "--no-check", "--out", str(tmp_path / "out"), *small]
    cli = CliRunner()
    first = cli.invoke(app, ["run", "mine/my_study.py", *only])
    assert first.exit_code == 0, first.output
    run = tmp_path / "out/moving_average/seed-0"
    before = (run / "summary.json").read_bytes()
    monkeypatch.chdir(tmp_path / "mine")
    again = cli.invoke(app, ["run", "my_study.py", *only])
    assert again.exit_code == 0, again.output
    assert (run / "summary.json").read_bytes() == before
    added = cli.invoke(
        app,
        [
            *("run", "quickstart", "--add", "slow=moving_average.py:MovingAverage:decay=0.99"),
            *("--only", "slow", "--no-check", "--out", str(tmp_path / "added"), *small),
        ],
    )
    assert added.exit_code == 0, added.output
    slow = json.loads((tmp_path / "added/slow/seed-0/config.json").read_text())
    assert slow["model"]["mechanisms"] == [
        {"kind": "moving_average.py:MovingAverage", "decay": 0.99}
    ]
    shutil.rmtree(tmp_path / "mine", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    for words in (["export", str(run), "--out", "new"], ["generate", "new", "--prompt", "a"]):
        done = cli.invoke(app, words)
        assert done.exit_code == 0, done.output


def test_the_error_shown_is_the_error_given():
    with pytest.raises(ConfigError) as error:
        load_study("mechanisms").override(["train.stpes=100", "model.d_model=130"])
    said = [str(problem) for problem in error.value.problems]
    page = (ROOT / "docs/guides/own-study.md").read_text()
    shown = re.search(r"invalid settings; nothing was run\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    for line in shown[1].splitlines():
        start = line.strip().removesuffix(", ...)")
        assert any(sentence.startswith(start) for sentence in said), line


def test_an_exported_run_gives_its_model_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(variant="mha", config=tiny_study.base)
    places = Places(None, tmp_path / "cache")
    identity = run.config.identity(corpus_of(run.config.data, places).fingerprint)
    list(execute(run, tmp_path, identity, places, torch.device("cpu")))
    attnlab.export("mha/seed-0", "my_model")
    names: dict[str, Any] = {}
    exec(python_block('load_run("my_model")'), names)
    assert names["logits_BTV"].shape == (1, 4, 256)


def test_the_users_own_test_passes_and_can_fail(tmp_path, monkeypatch):
    path = tmp_path / "moving_average.py"
    path.write_text(python_block("class MovingAverage("))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python_block("import assert_correct"), names)
    names["test_my_mechanism_is_correct"]()
    leaky = path.read_text().replace(".tril()", "").replace("MovingAverage", "Leaky")
    (tmp_path / "leaky.py").write_text(leaky)
    with pytest.raises(AssertionError, match="no position sees the future"):
        names["assert_correct"]("leaky.py:Leaky", quick=True)


COUNTED = "nats|tokens|bytes|FLOPs|seeds|sequences|milliseconds|ms|rates|kernels|workers"
BANNED = [
    rf"\b({COUNTED}) an? (token|step|second|sequence|variant|run|seed|device|process|line|point)\b"
    r"(?! sees)",
    r"\bone an? (CUDA |GPU |CPU )?(device|core|gpu|worker|run|line|variant|file|row|process)\b",
    r"\ba (CUDA )?device or core\b",
    r"\bcannot be told\b",
    r"\btold (apart|from|so)\b",
    r"\b(is|are|was|were|be) told\b",
    r"\bgo(es)? unseen\b",
    r"\bsmallest difference found\b",
    r"\b(4|four) times in (5|five)\b",
    r"\bvariants share taken out\b",
    r"\bown spreads\b",
    r"\bpractically (nothing|equal|as good)\b",
    r"\boff by (2x|two) costs\b",
    r"\bwhere to be\b",
    r"\bnot worth (its|their)\b",
    r"\bnothing was started\b",
    r"\b\d+ wrong\b",
    r"\bother settings than those asked for\b",
    r"\ball the same, and says so\b",
    r"\bcan be asked for\b",
    r"\bgo on from a prompt\b",
    r"\b(un)?seal(s|ed)?\b",
    r"\bledgers?\b",
    r"\bcanvas(es)?\b",
    r"\bat a time, one\b",
]
PATTERN = re.compile("|".join(BANNED), re.IGNORECASE)
COLUMNS = re.compile(r"\|\s*(which is|interior)\s*\||<th[^>]*>\s*(which is|interior)\b")
OPENINGS = ("What", "Of", "Whether", "How", "Where", "Whatever", "Those", "That")
PACKAGE = ROOT / "src/attnlab"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEMPLATES = sorted((PACKAGE / "reporting").rglob("*.j2"))


def offences(text: str) -> list[str]:
    """Return each banned phrase with a few words around it."""
    flat = " ".join(text.split())
    return [flat[max(0, m.start() - 30) : m.end() + 30] for m in PATTERN.finditer(flat)]


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of a module and of all classes and functions in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


def test_the_list_finds_what_it_is_for():
    assert offences("0.1 nats a token")
    assert offences("Runs at a time: one a CUDA device or core")
    assert offences("a and b cannot be\ntold apart")
    assert offences("2 wrong; nothing was started")
    assert not offences("0.1 nats/token; a worker per GPU; a and b are not distinguishable")


@pytest.mark.parametrize("page", WRITTEN, ids=[p.relative_to(ROOT).as_posix() for p in WRITTEN])
def test_the_english_of_pages(page):
    assert not offences(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a study with a report in every form."""
    folder = tmp_path_factory.mktemp("reported")
    reported_study.complete(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.reporting.figures.comparison.panel_pdfs", lambda _: {})
        patch.setattr("attnlab.reporting.figures.comparison.png", lambda _: b"")
        write_report(folder)
    return folder


@pytest.mark.parametrize("form", ["report.md", "report.html", "table.tex", "comparison.svg"])
def test_the_english_of_reports(report, form):
    text = (report / form).read_text(encoding="utf-8")
    assert not offences(re.sub(r"<(style|script)[^>]*>.*?</\1>", "", text, flags=re.DOTALL))
    assert not COLUMNS.search(text)


def test_the_english_of_help_texts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs/generate"))
    import reference

    assert not offences(reference.command_line())


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(PACKAGE)) for p in MODULES])
def test_the_english_of_docstrings_messages_and_comments(path):
    text = path.read_text(encoding="utf-8")
    assert not offences(text.replace("\n    # ", " "))
    openings = [
        f"{name}: {doc.splitlines()[0]}"
        for name, doc in docstrings(ast.parse(text))
        if re.match(rf"({'|'.join(OPENINGS)})\b", doc)
    ]
    is_a_question = path.parent.name == "shipped"  # the docstring is the study's question
    assert not openings or is_a_question


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_the_english_of_templates(path: Path):
    assert not offences(path.read_text(encoding="utf-8"))
