"""Records on disk: runs in their folders, the study they belong to, and atomic writes of files."""

from attnlab.record.atomic_files import (
    PUBLISHED,
    DamagedError,
    WriteError,
    is_of_disk,
    is_published,
    leads_outside,
    replace_file,
    require_results_folder,
    require_within,
)
from attnlab.record.file_types import (
    HARNESS,
    BenchForm,
    HarnessMetricForm,
    HarnessTaskForm,
    JudgementForm,
    bench_points,
    harness_results,
)
from attnlab.record.json_text import Json, to_json, write_json
from attnlab.record.lease import HeldError, Holder, LostLeaseError, Observer
from attnlab.record.packed_file import RunKey, rate_of
from attnlab.record.packed_study import Packed, pack, unpack
from attnlab.record.recorded_run import Status, folder_name, reading_once
from attnlab.record.run_folder import NO_INFLUENCE, RunFolder, digest_of
from attnlab.record.study_record import Cell, Rung, StudyRecord, cells_of, meant, runs_in
from attnlab.record.temporary_files import remove_temporary
from attnlab.record.tuning_record import (
    SEARCH_NOISE,
    TUNING_SEED,
    read_tuning_choice,
    tuning_runs,
    tuning_seed,
    write_tuning_choice,
)
from attnlab.record.verified_folder import read_object, write_object

__all__ = [
    "HARNESS",
    "NO_INFLUENCE",
    "PUBLISHED",
    "SEARCH_NOISE",
    "TUNING_SEED",
    "BenchForm",
    "Cell",
    "DamagedError",
    "HarnessMetricForm",
    "HarnessTaskForm",
    "HeldError",
    "Holder",
    "Json",
    "JudgementForm",
    "LostLeaseError",
    "Observer",
    "Packed",
    "RunFolder",
    "RunKey",
    "Rung",
    "Status",
    "StudyRecord",
    "WriteError",
    "bench_points",
    "cells_of",
    "digest_of",
    "folder_name",
    "harness_results",
    "is_of_disk",
    "is_published",
    "leads_outside",
    "meant",
    "pack",
    "rate_of",
    "read_object",
    "read_tuning_choice",
    "reading_once",
    "remove_temporary",
    "replace_file",
    "require_results_folder",
    "require_within",
    "runs_in",
    "to_json",
    "tuning_runs",
    "tuning_seed",
    "unpack",
    "write_json",
    "write_object",
    "write_tuning_choice",
]
