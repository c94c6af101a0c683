"""The command line: its arguments, output, files and exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from support import tiny_study
from support.reported_study import write_study
from typer.testing import CliRunner

from attnlab import cli
from attnlab.analysis.analysis import analyse
from attnlab.cli import app
from attnlab.record import LostLeaseError, RunFolder
from attnlab.record.lease import Holder
from attnlab.reporting.files import UnwrittenReportError
from attnlab.runner.events import Progress
from attnlab.study.targets import load_study

TINY = tiny_study.__file__


def test_a_study_runs_ranks_and_reports(first_run):
    start, done = first_run
    assert done.exit_code == 0, done.output
    assert "2 variants x 1 seed = 2 runs; results in results/tiny_study" in done.output
    assert re.search(r"2/2 \w+ seed 0: validation loss \d\.\d{4}", done.output)
    assert "One seed per variant: no intervals." in done.output
    folder = start / "results" / "tiny_study"
    for name in ("report.md", "table.csv", "comparison.png", "comprehensive_results.json"):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "failures.json").read_text()) == {}


def test_a_finished_study_is_shown_and_another_seed_is_added(attnlab, trained):
    again = attnlab("run", TINY, "--seeds", "1", "--only", "mha,identity", "--json")
    assert again.exit_code == 0
    results = json.loads(again.stdout)
    assert sorted(results) == ["identity", "mha"]
    assert results["mha"]["seeds"] == [0]

    more = attnlab("run", TINY, "--seeds", "2", "--only", "mha", "--device", "cpu")
    assert "1 of them done" in more.output
    assert {run["variant"] for run in _summaries(trained)} == {"mha", "identity"}


def _summaries(folder: Path):
    return [json.loads(path.read_text()) for path in folder.glob("*/seed-*/summary.json")]


def test_settings_that_are_wrong_end_with_2_before_anything_is_spent(attnlab, tmp_path):
    done = attnlab("run", TINY, "train.stpes=3", "model.mechanisms.0.n_heads=3", "--only", "mha")
    assert done.exit_code == 2
    assert "error: 2 invalid settings; nothing was run" in done.stderr
    assert "train: no field 'stpes'; did you mean 'steps'?" in done.stderr
    assert "model.mechanisms.0.n_kv_heads: 2 does not divide n_heads 3" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "mechanism"), "no study 'mechanism'; did you mean 'mechanisms'?"),
        (("run", "nowhere.py"), "no file nowhere.py"),
        (("run", TINY, "--only", "mhx"), "no variant 'mhx'; did you mean 'mha'?"),
        (("run", TINY, "--seeds", "0"), "  --seeds: must be at least 1"),
        (("run", TINY, "--most-seeds", "3"), "error: --most-seeds: only with until decided"),
        (("run", TINY, "--only", ","), "error: --only: no variant is named"),
        (("run", TINY, "stpes=3"), "no field 'stpes'; did you mean 'train.steps'?"),
        (("run", TINY, "n_heads=3"), "did you mean 'model.mechanisms.0.n_heads'?"),
        (("run", TINY, "mha"), "  mha: no value is given; write section.key=value"),
        (("run", TINY, "model.mechanisms.9.n_heads=3"), "no item '9'; known: 0"),
        (
            ("run", TINY, "--no-check", "--out", "/proc/no"),
            "/proc/no: No such file or directory; name",
        ),
        (("rum", TINY), "error: no command 'rum'; did you mean 'run'? (attnlab --help lists"),
        (("doctor", "more"), "error: unexpected more (attnlab doctor --help lists"),
        (("bench", "mla", "--what", "trian"), "error: --what: 'trian' is not one of"),
        (("run", "~nobody-x/a.py"), "error: no file ~nobody-x/a.py (looked for"),
        (("check", "~nobody-x/a.py:Mine"), "error: no file ~nobody-x/a.py (looked for"),
        (("check", "mla", "--fla-path", "~nobody-x"), "no clone of flash-linear-attention at"),
        (("bench", "mla", "--what", ","), "error: --what: name at least one of train, prefill"),
        (("run", TINY, "train.warmup_steps=12"), "12 of 12 steps"),
        (("run", TINY, "--device", "cuda:9"), "no device 'cuda:9': torch sees"),
        (("run", TINY, "--device", "gpu"), "unknown device 'gpu': use auto, cpu, cuda or cuda:1"),
        (("run", TINY, "--track", "tensorbord"), "'tensorbord'; did you mean 'tensorboard'?"),
        (("run", "fair_search", "--length", "fats"), "did you mean 'fast'?"),
        (("report", "nowhere"), "no study in nowhere"),
        (("train", TINY, "--variant", "mhx"), "  --variant: no variant 'mhx'; did you mean 'mha'?"),
        (("train", TINY, "data=mano"), "train.seq_len: the task has sequences of 12 tokens"),
        (("reproduce", "mqarr"), "no reproduction 'mqarr'; did you mean 'mqar'?"),
        (("eval", "nowhere", "--tasks", "x", "--limit", "0"), "--limit: must be at least 1"),
        (("check", "gatd-delta-net"), "did you mean 'gated_delta_net'?"),
    ],
)
def test_every_mistake_is_a_sentence_and_exit_code_2(attnlab, arguments, message):
    done = attnlab(*arguments)
    assert done.exit_code == 2, done.output
    assert " ".join(message.split()) in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_missing_data_says_what_was_looked_for_where_and_how_to_get_it(attnlab):
    done = attnlab("run", "mechanisms", "data.path=nowhere")
    assert done.exit_code == 2
    for word in ("train.txt", "nowhere", "data.path"):
        assert word in done.stderr
    without = attnlab("run", "nanogpt")
    assert without.exit_code == 2
    assert "not found, and no folder of data was given. Name the file" in " ".join(
        without.stderr.split()
    )
    assert "ATTNLAB_DATA" in without.stderr


def test_a_failed_run_is_shown_and_makes_exit_code_1(attnlab, tmp_path):
    done = attnlab(
        *("run", TINY, "--seeds", "1", "--only", "identity", "--device", "cpu"),
        *("train.learning_rate=1e30", "train.clip_norm=1e30"),
    )
    assert done.exit_code == 1
    assert "diverged" in done.output
    assert RunFolder(tmp_path / "results" / "tiny_study", "identity", 0).status() == "diverged"
    failures = json.loads((tmp_path / "results/tiny_study/failures.json").read_text())
    assert failures["identity"]["seeds"]["0"]["status"] == "diverged"


def test_a_study_tunes_its_learning_rates_and_then_trains(attnlab, tmp_path):
    (tmp_path / "tuned.py").write_text(
        "from dataclasses import replace\n"
        "from attnlab.training.search import Tuning\n"
        "from support.tiny_study import study\n"
        "study = replace(study.only(['identity']), seeds=1,\n"
        "    tuning=Tuning(multiples=(1, 2), most=4))\n"
    )
    arguments = ("run", "tuned.py", "--device", "cpu", "--workers", "1")
    done = attnlab(*arguments)
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "first, about 7 (6 to 20) runs to search recipes" in words
    assert "1/7+ identity at 0.01, warm-up 2: validation loss" in words
    choice = json.loads((tmp_path / "results/tuned/identity/tuning/choice.json").read_text())
    assert f"identity: learning rate {choice['learning_rate']:g}, warm-up" in words
    run = RunFolder(tmp_path / "results/tuned", "identity", 0)
    assert run.config()["train"]["learning_rate"] == choice["learning_rate"] != 0.01
    assert "test_loss" in run.summary()
    for tried in (tmp_path / "results/tuned/identity/tuning").glob("lr-*/*/summary.json"):
        assert "test_loss" not in json.loads(tried.read_text())
    record = json.loads((tmp_path / "results/tuned/study.json").read_text())
    assert record["tuning"]["multiples"] == [1, 2]

    again = attnlab(*arguments)
    assert again.exit_code == 0
    assert "1 run, 1 of them done" in again.output
    assert "validation loss 0" not in again.output
    listed = attnlab("list", "results/tuned")
    assert f"{choice['learning_rate']:.3g}" in listed.output.partition("Runs")[0]
    recipes = json.loads(attnlab("list", "results/tuned", "--json").stdout)["recipes"]
    assert recipes["identity"]["allowance"] == choice["allowance"]
    assert recipes["identity"]["runs"] == len(choice["losses"])
    untuned = attnlab(*arguments, "--no-tune")
    assert untuned.exit_code == 2
    assert "train.learning_rate is" in " ".join(untuned.stderr.split())
    elsewhere = attnlab(*arguments, "--no-tune", "--out", "untuned")
    assert elsewhere.exit_code == 0
    run = RunFolder(tmp_path / "untuned", "identity", 0)
    assert run.config()["train"]["learning_rate"] == 0.01


def test_a_variant_without_a_rate_that_works_is_shown_and_makes_exit_code_1(attnlab, tmp_path):
    (tmp_path / "hopeless.py").write_text(
        "from dataclasses import replace\n"
        "from attnlab.training.search import Tuning\n"
        "from support.tiny_study import study\n"
        "study = replace(study.only(['identity']), seeds=1,\n"
        "    tuning=Tuning(multiples=(1,), most=3))\n"
    )
    done = attnlab(
        *("run", "hopeless.py", "--device", "cpu", "--workers", "1"),
        *("train.learning_rate=1e30", "train.clip_norm=1e30"),
    )
    assert done.exit_code == 1
    assert "it diverged at every learning rate that was tried" in " ".join(done.output.split())
    failures = json.loads((tmp_path / "results/hopeless/failures.json").read_text())
    assert failures["identity"]["seeds"]["0"]["status"] == "failed"


def test_what_a_study_asks_can_change_when_its_runs_are_done(attnlab, tmp_path):
    path = tmp_path / "asks.py"
    text = (
        "from dataclasses import replace\n"
        "from support.tiny_study import study\n"
        "from dataclasses import dataclass\n"
        "from attnlab.analysis.hypotheses import Evidence, Hypothesis\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Finite(Hypothesis):\n"
        "    variant: str\n"
        "    needs_verdict = False\n"
        "    statement = 'Its loss is a number.'\n"
        "    def judge(self, evidence: Evidence):\n"
        "        return evidence.finding([True], ['It is.'])\n"
        "study = replace(study.only(['identity']), seeds=1, margin={})\n"
    )
    arguments = ("run", "asks.py", "--device", "cpu", "--no-check")
    path.write_text(text.format("0.01"))
    assert attnlab(*arguments).exit_code == 0
    record = tmp_path / "results" / "asks" / "study.json"
    before = json.loads(record.read_text())
    sys.modules.pop(next(name for name in sys.modules if name.startswith("attnlab_file_asks")))
    path.write_text(text.format("0.05, hypotheses=(Finite(variant='identity'),)"))
    assert attnlab(*arguments[:-1]).exit_code == 0
    after = json.loads(record.read_text())
    assert (after["margin"], after["hypotheses"][0]["variant"]) == (0.05, "identity")
    assert (after["command"], after["checked"]) == (before["command"], False)
    report = (record.parent / "report.md").read_text()
    assert re.search(r"Its loss is a number\. \|.*\*\*supported\*\*", report)


def test_list_has_studies_kinds_and_settings(attnlab):
    shown = attnlab("list")
    assert shown.exit_code == 0
    for word in ("quickstart", "mechanisms", "gated_delta_net", "wikitext2", "bpe", "fla:NAME"):
        assert word in shown.output
    assert "warmup_steps=100" in shown.output.replace("\n", "")
    known = json.loads(attnlab("list", "--json").stdout)
    assert known["mechanisms"]["sliding_window"]["settings"]["window"] == 256
    assert known["studies"]["mechanisms"]["question"].startswith("Which attention mechanism?")
    assert known["data"]["text"]["settings"]["paths"] == "required"
    assert known["settings"]["train"]["warmup_steps"] == 100


def test_list_shows_the_details_of_a_name(attnlab):
    kind = attnlab("list", "sliding_window")
    assert "window=256" in kind.output
    assert "gated_delta_net" not in kind.output
    assert attnlab("list", "sliding-window").output == kind.output
    assert "(Poli et al. 2024, arXiv:2403.17844)" in " ".join(
        attnlab("list", "fuzzy_recall").output.split()
    )
    section = attnlab("list", "train")
    assert "warmup_steps=100" in section.output
    both = attnlab("list", "mechanisms")  # a study and a family
    assert "gqa_2" in both.output
    assert "grouped_query(n_kv_heads=2)" in both.output
    assert "mha (baseline)" in both.output
    assert "window=256" in both.output
    study = json.loads(attnlab("list", "fair_search", "--json").stdout)["studies"]["fair_search"]
    assert study["baseline"] == "baseline"
    assert study["lengths"]["fast"] == []
    unknown = attnlab("list", "mlaa")
    assert unknown.exit_code == 2
    assert "nothing is called 'mlaa'; did you mean 'mla'?" in unknown.stderr
    listed = attnlab("list", "?").stderr.partition("known: ")[2].split(", ")
    assert len(set(listed)) == len(listed)


def test_list_shows_the_runs_of_a_folder_packed_or_not(attnlab, trained, tmp_path):
    packed = shutil.copytree(trained, tmp_path / "packed")
    assert attnlab("pack", str(packed), "--drop-checkpoints").exit_code == 0
    shown = attnlab("list", str(trained))
    assert shown.output == attnlab("list", str(packed)).output
    assert re.search(r"mha/seed-0 +finished +0.01 +\d\.\d{4} +\d\.\d{4}", shown.output)
    runs = json.loads(attnlab("list", str(packed), "--json").stdout)["runs"]
    summary = json.loads((trained / "mha" / "seed-0" / "summary.json").read_text())
    assert runs["mha/seed-0"]["test_loss"] == summary["test_loss"]
    (trained / "mha" / "seed-0" / "summary.json").write_text("")
    assert re.search(r"mha/seed-0 +damaged", attnlab("list", str(trained)).output)
    empty = attnlab("list", str(tmp_path))
    assert empty.exit_code == 2
    assert "holds no run" in empty.stderr


def test_report_rebuilds_the_derived_files(attnlab, trained):
    before = (trained / "table.csv").read_text()
    for name in ("table.csv", "report.md", "comparison.png"):
        (trained / name).unlink()
    assert attnlab("report", str(trained)).exit_code == 0
    assert (trained / "table.csv").read_text() == before
    assert (trained / "comparison.png").is_file()


def test_the_version_is_said(attnlab):
    assert re.fullmatch(r"attnlab \S+\n", attnlab("--version").output)


def test_text_is_generated_from_a_run(attnlab, trained):
    run = "results/tiny_study/mha/seed-0"
    arguments = ("generate", run, "--prompt", "def f", "--max-new-tokens", "12")
    done = attnlab(*arguments, "--seed", "1")
    assert done.exit_code == 0, done.output
    assert done.output.startswith("def f")
    assert done.output == attnlab(*arguments, "--seed", "1").output
    several = attnlab(*arguments, "--samples", "2", "--temperature", "0").output
    texts = [line for line in several.splitlines() if line.startswith("def f")]
    assert len(texts) == 2
    assert texts[0] == texts[1]


def test_a_wrong_run_prompt_or_sampling_is_an_error(attnlab, trained):
    run = "results/tiny_study/mha/seed-0"
    for arguments, message in (
        (("nowhere", "--prompt", "x"), "no run in nowhere"),
        (("results/tiny_study/mha", "--prompt", "x"), f"did you mean {run}"),
        ((run, "--prompt", ""), "the prompt is empty"),
        ((run, "--prompt", "x", "--top-p", "2"), "--top-p: must be in"),
    ):
        done = attnlab("generate", *arguments)
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.split())


def test_the_doctor_says_what_runs_here(attnlab):
    shown = attnlab("doctor")
    assert shown.exit_code == 0, shown.output
    assert "quickstart can run here" in shown.output
    assert "ATTNLAB_DATA" in shown.output
    rows = {row["part"]: row for row in json.loads(attnlab("doctor", "--json").stdout)}
    assert rows["data of quickstart"]["remedy"] == ""
    assert any(row["remedy"] for part, row in rows.items() if "mechanisms" in part)


def test_the_doctor_ends_with_1_where_the_default_study_cannot_run(attnlab, monkeypatch):
    monkeypatch.setattr("attnlab.runner.doctor.can_run", lambda _: False)
    assert attnlab("doctor").exit_code == 1


def test_the_record_of_a_finished_study_stays_as_it_is(attnlab, trained):
    before = (trained / "study.json").read_text()
    arguments = ("--seeds", "1", "--only", "mha,identity", "--device", "cpu", "--no-check")
    again = attnlab("run", TINY, *arguments)
    assert again.exit_code == 0
    assert "2 runs, 2 of them done" in again.output
    assert (trained / "study.json").read_text() == before


def test_commands_are_listed_in_reading_order(attnlab):
    shown = attnlab("--help").output
    names = re.findall(r"^│ (\w+) {2,}", shown, re.MULTILINE)
    assert names[:5] == ["list", "doctor", "run", "train", "extend"]
    assert sorted(names) == sorted(typer.main.get_command(app).commands)


def test_no_help_is_cut_at_80_columns(attnlab, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in typer.main.get_command(app).commands:
        assert "…" not in attnlab(name, "--help").output, name


def test_every_help_text_is_a_sentence():
    for name, command in typer.main.get_command(app).commands.items():
        texts = [command.help.split("\n\n")[0], *(p.help for p in command.params if p.help)]
        for text in texts:
            assert text.endswith((".", "...")), (name, text)
            assert text[0].isupper() or text.startswith("all,"), (name, text)


LIGHT = """
import sys
import attnlab

HEAVY = ("scipy", "matplotlib", "jinja2")  # scipy.special and scipy.stats import scipy
assert not {{"torch", "numpy", *HEAVY}} & sys.modules.keys()
from attnlab.cli import app

for arguments in {commands}:
    if arguments[0] == "report":  # drawing takes seconds, and imports no torch by a contract
        from attnlab.reporting import files
        from attnlab.reporting.figures import comparison

        files.page = lambda _: ""
        comparison.comparison, comparison.panel_pdfs = lambda _: (b"", b""), lambda _: {{}}
    try:
        app(arguments)
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
    assert "torch" not in sys.modules, arguments
    if arguments[0] in ("--help", "--version", "run", "list"):
        heavy = [name for name in HEAVY if name in sys.modules]
        assert not heavy, (arguments, heavy)
"""


def test_commands_that_only_read_files_do_without_torch(attnlab, trained):
    study = str(trained)
    for checkpoints in trained.glob("*/seed-*/checkpoints"):
        shutil.rmtree(checkpoints)  # which cannot be packed
    commands = [
        *(["--help"], ["--version"], ["run", "--help"], ["list"], ["list", "--json"]),
        *(["list", "mla"], ["report", study], ["report", study, "--json"]),
        *(["compare", study + "/mha", study + "/identity"], ["pack", study], ["unpack", study]),
    ]
    program = LIGHT.format(commands=commands)
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_train_says_in_a_line_that_its_run_was_taken_over(attnlab, monkeypatch):
    def taken_over(run, folder, *_, **__):
        yield Progress(3, 12, 2.5, None)
        raise LostLeaseError(folder.lease, Holder.of_this_process()._replace(host="node-2"))

    monkeypatch.setattr("attnlab.runner.execute.execute_as", taken_over)
    monkeypatch.setattr("attnlab.reporting.files.write_report", lambda _: None)
    done = attnlab("train", tiny_study.__file__, "--variant", "mqa", "--device", "cpu")
    assert done.stdout == "step 3 of 12  loss 2.5000\n"
    [said] = done.stderr.splitlines()
    assert said.startswith(f"the run was taken over by process {os.getpid()} on node-2; this")
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)


LOUD = """
from dataclasses import dataclass
from attnlab.mechanisms.identity import Identity, TokenwiseLinear
print("import")

class Mixer(TokenwiseLinear):
    def forward(self, x_BTD):
        print("forward")
        return super().forward(x_BTD)

@dataclass(frozen=True, kw_only=True)
class Loud(Identity):
    def build(self, d_model, dropout=0.0):
        return Mixer(d_model)
"""


def test_what_the_users_code_prints_is_a_note_and_no_part_of_results(attnlab, tmp_path):
    (tmp_path / "loud.py").write_text(LOUD)
    settings = ("model.mechanisms.0=loud.py:Loud", "train.steps=4", "train.eval_every=4")
    done = attnlab("train", tiny_study.__file__, *settings, "--out", "out", "--device", "cpu")
    assert [line[:4] for line in done.stdout.splitlines()] == [*["step"] * 3, "fini"]
    assert done.stderr == "import\nprints: forward\n"
    run, more = "out/mha/seed-0", ("--device", "cpu", "--trust")
    done = attnlab("generate", run, "--prompt", "def f", "--max-new-tokens", "5", *more)
    assert (done.stdout[:5], done.stderr) == ("def f", "prints: import\nprints: forward\n")
    done = attnlab("extend", run, "--by", "1", "--out", "longer", *more)
    assert done.stdout.splitlines()[0] == "mha seed 0: prints: forward"
    assert done.stdout.count("prints") == 1
    (tmp_path / "loud.py").write_text(LOUD + "  # edited: it is imported again")
    done = attnlab("check", "loud.py:Loud", "--quick", "--json")
    assert json.loads(done.stdout)["mechanisms"][0]["name"] == "loud.py:Loud"
    assert done.stderr.splitlines()[0] == "import"


CLAIM = "LossInRange(variants=('mha',), low=1.4, high={high}, source='Somebody 2022'),"
OWN = "LossInRange(variants=('delta',), high=1.0),"  # no source: no claim, though refuted


@pytest.mark.parametrize(
    ("claims", "code", "said"),
    [
        ([1.6], 0, "inside the published bands; 1 of 1"),
        ([1.6, 1.45], 1, "outside a published band; 1 of 2"),
        ([1.6, 1.52], 3, "undecided; 1 of 2"),
        ([], 2, "no hypothesis cites a source"),
    ],
)
def test_a_reproduction_is_inside_or_outside_of_its_bands(
    tmp_path, monkeypatch, claims, code, said
):
    study = tmp_path / "again.py"
    study.write_text(
        "from dataclasses import replace\nfrom attnlab import LossInRange\n"
        "from support import tiny_study\nbase = tiny_study.study.variants['mha']\n"
        "study = replace(tiny_study.study, baseline='mha', variants={'mha': base, 'delta': base},"
        f" hypotheses=({''.join(CLAIM.format(high=high) for high in claims)}{OWN}))\n"
    )

    def trained(study, **options):
        recorded = [hypothesis.to_dict() for hypothesis in study.hypotheses]
        losses = {"mha": [1.48, 1.52, 1.5012], "delta": [2.0, 2.1, 2.2]}
        folder = tmp_path / "results"
        return analyse(
            folder if folder.exists() else write_study(folder, losses, hypotheses=recorded)
        )

    monkeypatch.setattr("attnlab.runner.reproduce.run", trained)
    done = CliRunner().invoke(app, ["reproduce", str(study)])
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split())
    if code != 2:
        assert "Source: Somebody 2022" in done.output
        again = CliRunner().invoke(app, ["reproduce", str(study), "--json"])
        assert again.exit_code == code, (again.output, again.exception)
        found = json.loads(again.stdout)
        assert len(found["claims"]) == len(claims)

    def unwritten(study, **options):
        error = UnwrittenReportError("report.md could not be written")
        error.analysis = trained(study)
        raise error

    monkeypatch.setattr("attnlab.runner.reproduce.run", unwritten)
    plain, as_json = (
        CliRunner().invoke(app, ["reproduce", str(study), *form]) for form in ([], ["--json"])
    )
    assert plain.exit_code == as_json.exit_code == 2
    if code != 2:
        assert said in " ".join(plain.stdout.split())
        assert json.loads(as_json.stdout) == found


def test_the_reproductions_that_ship_are_studies_with_claims():
    listed = json.loads(CliRunner().invoke(app, ["reproduce", "--json"]).stdout)
    assert list(listed) == ["mqar", "mad", "state_tracking", "nanogpt"]
    for name in listed:
        assert any(hypothesis.source for hypothesis in load_study(name).hypotheses)
    done = CliRunner().invoke(app, ["reproduce", "nanogp"])
    assert done.exit_code == 2
    assert "no reproduction 'nanogp'; did you mean 'nanogpt'?" in done.output
