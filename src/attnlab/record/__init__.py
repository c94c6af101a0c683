"""Records on disk: runs in their folders, the study they belong to, and atomic writes of files."""

from attnlab.record.atomic_files import replace_file
from attnlab.record.json_text import Json, to_json, write_json
from attnlab.record.packed_study import Packed, pack, unpack
from attnlab.record.run_folder import (
    NO_INFLUENCE,
    TUNING_SEED,
    RunFolder,
    Status,
    folder_name,
    tuning_runs,
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
    "replace_file",
    "runs_in",
    "to_json",
    "tuning_runs",
    "unpack",
    "write_json",
    "write_tuning_choice",
]
