"""The request: a study and the options, folders and devices that a caller asks for, in one object.

`attnlab.run` and `attnlab.plan` build it from their arguments. The options change the study in one
place, `Request.apply_options`.
"""

import dataclasses
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from attnlab.config import (
    ConfigError,
    Problem,
    forget_names,
    is_own,
    names_in,
    naming,
    own_kind,
    require_once,
    texts_in,
)
from attnlab.config.problem import type_problems
from attnlab.data import Places
from attnlab.device.machine import Slot, worker_slots
from attnlab.device.ranks import uneven
from attnlab.kernels.flash_linear_attention import use_fla
from attnlab.mechanism import MechanismConfig
from attnlab.record import require_results_folder
from attnlab.runner.workers.ray_cluster import Capacity, Cluster, capacity
from attnlab.study.shorter_runs import paths_of
from attnlab.study.study import Study
from attnlab.study.sweep import sweep, typed_sweep
from attnlab.study.targets import addition, load_study
from attnlab.training.config import Tuning

MOST_SEEDS = 10  # until decided, unless another number is asked for
OPTIONS = (
    *("length", "add", "only", "seeds", "until", "most_seeds"),
    *("steps", "overrides", "sweep", "tune"),
)  # they change the study


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments that `attnlab.run` and `attnlab.plan` share, checked; `run` documents them."""

    study: Study | Path | str = field(kw_only=False)
    length: str | None = None
    add: Iterable[str] = ()
    only: Iterable[str] | str | None = None
    seeds: int | None = None
    until: str | None = None
    most_seeds: int | None = None
    steps: int | None = None
    overrides: Iterable[str] = ()
    sweep: Mapping[str, Iterable[object]] | Iterable[str] = ()
    tune: bool | None = None
    check: bool = True
    out: Path | str | None = None
    data: Path | str | None = None
    cache: Path | str | None = None
    device: str = "auto"
    workers: int | None = None
    gpus_per_run: int = 1
    fla_path: Path | str | None = None
    track: Iterable[str] = ()
    engine: str = "local"
    address: str | None = None
    cpus_per_run: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sweep, str):
            object.__setattr__(self, "sweep", [self.sweep])
        if problems := list(type_problems(self)):
            raise ConfigError(problems)
        for name in ("overrides", "add", "track"):
            object.__setattr__(self, name, texts_in(getattr(self, name), name))
        chosen = self.only if isinstance(self.only, str) else texts_in(self.only or (), "only")
        names = None if self.only is None else names_in(chosen)
        object.__setattr__(self, "only", names)
        swept = self.sweep if isinstance(self.sweep, Mapping) else typed_sweep(self.sweep)
        object.__setattr__(self, "sweep", {path: list(of) for path, of in swept.items()})
        object.__setattr__(self, "track", tuple(self.track))

    def apply_options(self) -> Study:
        """Return the study with all options applied. Without options it is returned as it is.

        Raises:
            ValueError: there is no such study, or no such clone of flash-linear-attention.
            ConfigError: settings are invalid; it lists all of them.
        """
        if self.only == []:
            raise ValueError("only: no variant is named")
        if self.out == "":
            raise ValueError("out: no folder is named")
        self._require_engine()
        forget_names()
        use_fla(self.fla_path)  # before a study file imports its layers
        study = self.study if isinstance(self.study, Study) else load_study(str(self.study))
        if self.length is not None:
            study = study.at_length(self.length)
        added = self._added()
        if added:
            study = study.add(added)
        if self.only is not None:
            study = study.only([*self.only, *(name for name in added if name not in self.only)])
        study = self._with_seeds(study)
        if self.tune is not None:
            tuning = study.tuning or Tuning() if self.tune else None
            study = dataclasses.replace(study, tuning=tuning)
        steps = [] if self.steps is None else [f"train.steps={self.steps}"]
        assignments = [*steps, *self.overrides]
        require_once(assignments)
        assert isinstance(self.sweep, Mapping)
        if "seed" in [*paths_of(assignments), *self.sweep]:
            message = "a study has the seeds 0 to N - 1, by --seeds N; attnlab train has --seed N"
            raise ConfigError([Problem("seed", message)])
        changed = study.override(assignments) if assignments else study
        self._require_swept(assignments)
        if self.sweep:
            changed = sweep(changed, self.sweep, assignments)
        return changed.in_folder(Path.cwd())  # records hold paths that mean the same everywhere

    def _added(self) -> dict[str, MechanismConfig]:
        """Return the mechanisms to add as variants. Raises ConfigError for two of one name."""
        found = dict[str, MechanismConfig]()
        for text in self.add:
            with naming(f"--add {text}"):
                name, mechanism = addition(text)
            if found.setdefault(name, mechanism) != mechanism:
                message = "two mechanisms have this name; write --add NAME=KIND for each"
                raise ConfigError([Problem(f"add.{name}", message)])
        return found

    def _require_swept(self, assignments: Iterable[str]) -> None:
        """Raise ConfigError for a setting that is given a value beside a sweep of others."""
        assert isinstance(self.sweep, Mapping)
        for path, _, text in (one.partition("=") for one in assignments):
            swept = [str(value) for value in self.sweep.get(path.strip(), (text.strip(),))]
            if text.strip() not in swept:
                message = f"{text.strip()} is given, too, and not among {', '.join(swept)}"
                raise ConfigError([Problem(f"sweep.{path.strip()}", f"{message}; drop it")])

    def _with_seeds(self, study: Study) -> Study:
        """Return the study with the numbers of seeds asked for."""
        if self.until not in (None, "decided"):
            raise ValueError(f"until: unknown {self.until!r}; use decided")
        if self.most_seeds is not None and self.until is None:
            raise ValueError("most_seeds: only with until decided")
        seeds = study.seeds if self.seeds is None else self.seeds
        most = study.most_seeds
        if self.until is not None:
            most = self.most_seeds or most or max(MOST_SEEDS, seeds)
        if (seeds, most) == (study.seeds, study.most_seeds):
            return study
        return dataclasses.replace(study, seeds=seeds, most_seeds=most)

    def _require_engine(self) -> None:
        """Raise ValueError for an unknown engine, and for options that the engine does not have."""
        if self.engine not in ("local", "ray"):
            raise ValueError(f"engine: unknown {self.engine!r}; use local or ray")
        if self.engine == "local":
            for option in ("address", "cpus_per_run"):
                if getattr(self, option) is not None:
                    raise ValueError(f"{option}: only with the engine ray")
        elif self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"device: Ray chooses the GPUs; use auto, cpu or cuda, not {self.device!r}"
            )
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: must be at least 1, got {self.workers}")
        if self.cpus_per_run is not None and self.cpus_per_run < 1:
            raise ValueError(f"cpus_per_run: must be at least 1, got {self.cpus_per_run}")

    def study_dir(self, study: Study) -> Path:
        """Return the folder of the results: `out`, or results/NAME.

        Raises:
            ValueError: the study has no name, and `out` is not given; or results cannot be written
                to the folder.
        """
        if self.out is None and not study.name:
            raise ValueError('the study has no name: use Study(name="...") or give out="FOLDER"')
        found = Path("results") / study.name if self.out is None else Path(self.out)
        require_results_folder(found)
        return found

    def places(self) -> Places:
        """Return the folders of data and of derived files."""
        return Places.from_environment(self.data, self.cache)

    def slots(self, study: Study) -> list[Slot]:
        """Return one slot per worker; with Ray, one of this machine, to time steps on.

        Raises ConfigError if the GPUs of a run cannot share its batch evenly, and ValueError if
        there are no such devices.
        """
        problems = dict.fromkeys(
            Problem("train.batch_size", problem)
            for config in study.variants.values()
            if (problem := uneven(config.train.batch_size, self.gpus_per_run))
        )
        if problems:
            raise ConfigError(problems)
        if self.engine == "ray":
            return worker_slots("cpu" if self.device == "cpu" else "auto", 1)
        return worker_slots(self.device, study.fewest_runs(), self.workers, self.gpus_per_run)

    def capacity(self, study: Study) -> Capacity:
        """Return the number of workers and their devices, as a plan says them.

        Raises ValueError as `slots` and `cluster` do.
        """
        runs = study.fewest_runs()
        if self.engine == "ray":
            most = min(runs, self.workers or runs)
            found = capacity(self.address, self.device, self.gpus_per_run, self.cpus_per_run, most)
            if found is not None:
                return found
        slots = worker_slots(self.device, runs, self.workers, self.gpus_per_run)
        devices = dict.fromkeys(device for slot in slots for device in slot.devices)
        note = "Ray: no cluster runs here; the command starts one of this machine alone"
        return Capacity(len(slots), tuple(devices), (note,) if self.engine == "ray" else ())

    @contextmanager
    def cluster(self) -> Generator[Cluster | None]:
        """Yield the connection to the Ray cluster, closed at the end; None without one.

        Raises ValueError if Ray is not installed, or there is no cluster at the address.
        """
        found = Cluster(self.address) if self.engine == "ray" else None
        try:
            yield found
        finally:
            if found is not None:
                found.close()

    def call(self) -> str:
        """Return the call of `attnlab.run` in Python, with the options that are not defaults."""
        name = self.study.name if isinstance(self.study, Study) else str(self.study)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = [
            f"{option}={value!r}"
            for option in OPTIONS
            if (value := getattr(self, option)) not in (defaults[option], [], {})
        ]
        return f"attnlab.run({', '.join([repr(name), *given])})"


def require_importable(study: Study) -> None:
    """Raise ConfigError for classes that are defined in a notebook or in the script itself."""
    problems = dict.fromkeys(
        Problem(
            type(config).__name__,
            "is defined in a script or notebook, which workers cannot import: move it to a file of "
            "its own and import it from there",
        )
        for run in study.variants.values()
        for config in (run.data, run.model.feedforward, *run.model.per_layer())
        if is_own(type(config)) and own_kind(type(config)) is None
    )
    if problems:
        raise ConfigError(problems)
