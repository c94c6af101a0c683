"""Measure what a run costs the driver of a study on Ray: time per run, and memory.

    python benchmarks/ray_dispatch.py 1000

The runs train nothing: their actor writes the files of a finished run and answers. A line per
hundred runs gives milliseconds per run, those of them outside the actor (the schedule, the leases,
Ray and back), and the driver's memory.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attnlab.data import Places
from attnlab.data.stdlib import Stdlib
from attnlab.data.tokenizer import Bytes
from attnlab.mechanisms.identity import Identity
from attnlab.model.language_model import ModelConfig
from attnlab.runner.events import Ended, Event, Progress
from attnlab.runner.schedule import open_schedule
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
