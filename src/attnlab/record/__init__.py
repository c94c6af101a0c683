"""Records on disk: runs in their folders, the study they belong to, and atomic writes of files."""

from attnlab.record.atomic_files import replace_file, sweep
from attnlab.record.json_text import Json, to_json, write_json
from attnlab.record.packed_file import rate_of
from attnlab.record.packed_study import Packed, pack, unpack
from attnlab.record.run_folder import (
    NO_INFLUENCE,
    TUNING_SEED,
    RunFolder,
    Status,
    folder_name,
    read_tuning_choice,
    tuning_runs,
    tuning_seed,
    write_tuning_choice,
)
from attnlab.record.study_record import StudyRecord, runs_in

__all__ = [
    "NO_INFLUENCE",
    "TUNING_SEED",
    "Json",
    "Packed",
    "RunFolder",
    "Status",
    "StudyRecord",
    "folder_name",
    "pack",
    "rate_of",
    "read_tuning_choice",
    "replace_file",
    "runs_in",
    "sweep",
    "to_json",
    "tuning_runs",
    "tuning_seed",
    "unpack",
    "write_json",
    "write_tuning_choice",
]
