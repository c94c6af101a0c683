"""Whether a study's folder holds what is asked for: found out before anything is spent."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from attnlab.record import RunFolder, tuning_runs
from attnlab.runner.schedule import Agenda
from attnlab.study.study import Study
from attnlab.training.recipe import RatesToTry, tuning_losses
from attnlab.training.run import Run


def plan(study: Study, study_dir: Path, fingerprints: Mapping[str, str]) -> Agenda:
    """What there is to run. `fingerprints` are of each variant's data.

    Raises ValueError if the folder holds runs with other settings.
    """
    for variant in study.variants:
        for seed in range(study.seeds):
            study.verdict_run(variant, seed).folder(study_dir).finalize()
        for folder in tuning_runs(study_dir, variant).values():
            folder.finalize()
    conflicts = [
        f"{folder.path}: {why}"
        for variant in study.variants
        for folder, why in _conflicts(study, study_dir, variant, fingerprints[variant])
    ]
    if conflicts:
        more = f"\nand {len(conflicts) - 3} more" if len(conflicts) > 3 else ""
        raise ValueError(
            "these runs have other settings than those asked for; nothing was started:\n"
            + "\n".join(conflicts[:3])
            + more
            + f"\nchoose another --out, or remove them from {study_dir}"
        )
    return Agenda(study, study_dir, fingerprints)


def _conflicts(
    study: Study, study_dir: Path, variant: str, fingerprint: str
) -> Iterator[tuple[RunFolder, str]]:
    """Runs of a variant that are there with other settings, and which."""
    rate = None
    if study.learning_rates is not None:
        for tuning_rate, folder in tuning_runs(study_dir, variant).items():
            if why := conflict(study.tuning_run(variant, tuning_rate), folder, fingerprint):
                yield folder, why
        own_rate = study.variants[variant].train.learning_rate
        decision = study.learning_rates.decide(own_rate, tuning_losses(study_dir, variant))
        rate = None if isinstance(decision, RatesToTry) else decision.rate
    for seed in range(study.seeds):
        run = study.verdict_run(variant, seed, rate)
        folder = run.folder(study_dir)
        if study.learning_rates is not None and rate is None and folder.identity() is not None:
            yield folder, "it was trained before its learning rate was tuned"
        elif why := conflict(run, folder, fingerprint):
            yield folder, why


def conflict(run: Run, folder: RunFolder, fingerprint: str) -> str:
    """How the run that is there differs from this one; empty where it does not or none is there."""
    settings = run.config.to_dict() | {"identity": run.config.identity(fingerprint)}
    different = list(folder.conflict(settings).items())[:4]
    return "; ".join(f"{path} is {a!r} there, {b!r} asked" for path, (a, b) in different)
