"""Records on disk: runs in their folders, the study they belong to, and atomic writes of files."""

from attnlab.record.atomic_files import replace_file
from attnlab.record.json_text import Json, to_json, write_json
from attnlab.record.run_folder import (
    NO_INFLUENCE,
    TUNING_SEED,
    RunFolder,
    Status,
    folder_name,
    tuning_runs,
)
from attnlab.record.study_record import StudyRecord

__all__ = [
    "NO_INFLUENCE",
    "TUNING_SEED",
    "Json",
    "RunFolder",
    "Status",
    "StudyRecord",
    "folder_name",
    "replace_file",
    "to_json",
    "tuning_runs",
    "write_json",
]
