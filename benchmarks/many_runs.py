"""Measure what many runs cost: the driver of a study, on Ray or here, and a report of them.

    python benchmarks/many_runs.py 1000

The runs train nothing: their actor writes the files of a finished run and answers. A line per
hundred runs gives milliseconds per run, those of them outside the actor (the schedule, the leases,
Ray and back), and the driver's memory. `speed_table.py` measures a driver without Ray, and a
report.
"""

import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnlab.data import Places
from attnlab.data.stdlib import Stdlib
from attnlab.data.tokenizer import Bytes
from attnlab.mechanisms.identity import Identity
from attnlab.model.language_model import ModelConfig
from attnlab.record import RunFolder, StudyRecord
from attnlab.runner.events import Ended, Event, Progress
from attnlab.runner.run import ResultsSoFar
from attnlab.runner.schedule import PlannedRun, open_schedule
from attnlab.runner.workers import run_schedule
from attnlab.runner.workers.ray import Cluster, RayWorkers
from attnlab.runner.workers.ray_actor import Actor
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig
from attnlab.training.run import Run, RunConfig

CONFIG = RunConfig(
    data=Stdlib(tokenizer=Bytes(), max_bytes=100_000),
    model=ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=8),
    train=TrainConfig(steps=1, warmup_steps=0, seq_len=8),
)


class NoTraining(Actor):
    """An actor whose runs end at once. The loss of a run is the seconds that it took here."""

    def _events(self, run: Run, study_dir: Path, identity: str) -> Iterator[Event]:
        begin, folder = time.perf_counter(), run.folder(study_dir)
        with folder.hold():
            folder.open({**run.config.to_dict(), "identity": identity}, {})
            folder.append({"step": 0, "eval_loss": 1.0})
            folder.finish({"status": "finished", "final_loss": 1.0})
        yield Progress(0, 1, None, None)
        yield Ended("finished", None, time.perf_counter() - begin)


class EndAtOnce:
    """Workers of this process whose runs end at once."""

    def __init__(self, study_dir: Path) -> None:
        self.study_dir, self.planned = study_dir, None

    def idle(self) -> bool:
        return self.planned is None

    def busy(self) -> bool:
        return self.planned is not None

    def prepare(self, runs: int) -> None:
        pass

    def start(self, planned: PlannedRun) -> None:
        self.planned = planned

    def events(self, seconds: float) -> Iterator[tuple[PlannedRun, Event]]:
        del seconds
        planned, self.planned = self.planned, None
        folder = planned.run.folder(self.study_dir)
        settings = {**planned.run.config.to_dict(), "identity": planned.identity}
        write(folder, settings, 5.0 + 0.01 * math.sin(planned.run.seed))
        yield planned, Ended("finished", None, 5.0)

    def stop(self) -> None:
        pass


def write(folder: RunFolder, settings: dict[str, Any], loss: float) -> None:
    """Record a finished run: 40 measurements, loss by position and by 200 blocks of the text."""
    folder.open(settings, {"device": "cpu"})
    for step in range(25, 1001, 25):
        at = loss + 4 * math.exp(-step / 200)
        folder.append({"step": step, "train_loss": at - 0.1, "train_seconds": step / 500,
                       "eval_loss": at, "eval_accuracy": 0.2})  # fmt: skip
    first = [0, *(2**n for n in range(10))]
    folder.finish({
        "status": "finished", "final_loss": loss, "final_perplexity": math.exp(loss),
        "final_recall_loss": 0.6 * loss, "final_other_loss": 1.1 * loss,
        "final_loss_by_position": {"first": first, "loss": [loss + 1 / (1 + i) for i in first]},
        "final_loss_by_block": {"tokens": [1024] * 200,
                                "loss": [loss + 0.1 * math.sin(n) for n in range(200)]},
        "steps": 1000, "tokens": 4_096_000, "train_time": 2.0, "total_time": 20.0,
        "step_time": 0.002 + 1e-5 * loss, "peak_memory_bytes": 3 << 30, "attention_type": "toy",
        "parameters": {"attention": 262_144, "total": 4_883_584}, "flops_per_token": 12_000_000,
        "state_bytes": 1 << 20,
    })  # fmt: skip


def report_of(runs: int, variants: int) -> tuple[float, int]:
    """Return the CPU seconds of a report of so many runs, and the bytes of its page."""
    from attnlab.reporting.files import PAGE, write_report

    with tempfile.TemporaryDirectory() as folder:
        study_dir, names = Path(folder), [f"variant {i}" for i in range(variants)]
        StudyRecord(
            name="many", question="?", baseline=names[0], variants=tuple(names),
            seeds=tuple(range(-(-runs // variants))), command="-", attnlab_version="-",
        ).write(study_dir)  # fmt: skip
        for i in range(runs):
            seed, variant = divmod(i, variants)
            mechanism = {"kind": f"toy_{variant % 8}", "size": variant}
            settings = {"identity": "x", "model": {"mechanisms": [mechanism]},
                        "train": {"learning_rate": 1e-3, "seq_len": 1024}}  # fmt: skip
            loss = 5 + 0.03 * math.sin(variant) + 0.003 * math.sin(7 * variant + 3 * seed)
            write(RunFolder(study_dir, names[variant], seed), settings, loss)
        begin = time.process_time()
        write_report(study_dir)
        return time.process_time() - begin, (study_dir / PAGE).stat().st_size


def memory_of_the_driver(few: int, many: int) -> tuple[float, float]:
    """Return the bytes of this process after few and after many runs of one study."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(question="?", variants={"identity": CONFIG}, seeds=many)
        study.record(command="-", checked=False).write(study_dir := Path(folder))
        schedule, results, after = (
            open_schedule(study, study_dir, {"identity": "x"}),
            ResultsSoFar(),
            0.0,
        )
        for ended, _ in enumerate(run_schedule(schedule, EndAtOnce(study_dir)), 1):
            results.update(study_dir)
            if ended == few:
                after = resident()
        return after, resident()


def resident() -> float:
    """Return the bytes of memory that this process holds now."""
    return 4096.0 * int(Path("/proc/self/statm").read_text().split()[1])


def main(runs: int) -> None:
    """Measure this number of runs, one after another."""
    cluster = Cluster("local")
    with tempfile.TemporaryDirectory() as folder:
        study_dir = Path(folder) / "study"
        study_dir.mkdir()
        corpus = CONFIG.data.load(Places(None, Path(folder)))
        study = Study(question="?", variants={"identity": CONFIG}, seeds=runs)
        schedule = open_schedule(study, study_dir, {"identity": corpus.fingerprint})
        needs = cluster.needs("cpu")
        workers = RayWorkers(cluster, study_dir, {"identity": corpus}, needs, most=1)
        workers._actor = cluster.ray.remote(NoTraining)
        begin, ended, elsewhere = 0.0, 0, 0.0
        for event in run_schedule(schedule, workers):
            begin = begin or time.perf_counter()  # the actor has started
            if not isinstance(event.event, Ended):
                continue
            ended, elsewhere = ended + 1, elsewhere + (event.event.final_loss or 0.0)
            if ended % 100 == 0:
                total = time.perf_counter() - begin
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(
                    f"{ended} runs: {1000 * total / ended:.1f} ms/run, "
                    f"{1000 * (total - elsewhere) / ended:.1f} of them outside the actor, "
                    f"peak memory {peak:.0f} MB"
                )
    cluster.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
