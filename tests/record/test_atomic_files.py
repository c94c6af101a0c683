"""Files are written whole or not at all, inside their folder, and nothing temporary stays."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnlab.record import temporary_files
from attnlab.record.atomic_files import (
    DamagedError,
    WriteError,
    open_regular,
    replace_file,
    replace_folder,
    require_within,
    verified_file,
)
from attnlab.record.temporary_files import remove_temporary
from attnlab.record.verified_folder import write_verified

REFUSALS = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EMFILE", "EIO"]
WRITER = """
import sys, time
from pathlib import Path
from attnlab.record.atomic_files import replace_file, replace_folder
def stop(*_):
    print("writing", flush=True)
    time.sleep(60)
{"file": replace_file, "folder": replace_folder}[sys.argv[2]](Path(sys.argv[1], "x"), stop)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path, kind):
    inside = tmp_path / "mha" / "seed-0.partial"
    inside.mkdir(parents=True)
    command = [sys.executable, "-c", WRITER, str(inside), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        (left,) = inside.iterdir()
        remove_temporary(tmp_path)
        assert left.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    remove_temporary(tmp_path)
    assert names(tmp_path) == ["mha", "seed-0.partial"]


def test_what_another_machine_writes_is_left_for_a_day_where_its_locks_are_not_seen(tmp_path):
    old, new = (tmp_path / f".{name}.{'0' * 8}0a1b2c3d.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("written by another machine")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    remove_temporary(tmp_path)
    assert names(tmp_path) == [new.name]
    remove_temporary(tmp_path, held=True)
    assert names(tmp_path) == []


def test_a_sweep_leaves_the_users_own_files(tmp_path):
    own = [".vimrc.tmp", "a.tmp", ".x.1234567.tmp", ".x.12345678.tmp.txt", "x.0a1b2c3d.tmp"]
    for name in own:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".report.md.0a1b2c3d.tmp").write_text("left")
    remove_temporary(tmp_path)
    assert names(tmp_path) == sorted(own)


def test_a_writer_that_was_swept_between_making_its_file_and_locking_it_makes_another(
    tmp_path, monkeypatch
):
    lock, swept = temporary_files.fcntl.flock, []

    def flock(handle, kind):
        if not swept:
            swept.extend(path.unlink() for path in tmp_path.iterdir())
        lock(handle, kind)

    monkeypatch.setattr(temporary_files.fcntl, "flock", flock)
    replace_file(tmp_path / "x", b"whole")
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("at", ["open", "fsync", "replace"])
def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path, monkeypatch, refusal, at):
    path, code = tmp_path / "summary.json", getattr(errno, refusal)
    path.write_text("old")

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    owner = os if at == "fsync" else Path
    with monkeypatch.context() as patch:
        patch.setattr(owner, at, refuse)
        with pytest.raises(WriteError) as error:
            replace_file(path, b"new")
    assert str(error.value) == f"{path} could not be written: {os.strerror(code)}"
    assert error.value.errno == code
    assert names(tmp_path) == ["summary.json"]
    assert path.read_text() == "old"


def test_a_name_that_is_too_long_is_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(WriteError, match=r"x{250} could not be written: File name too long"):
        replace_file(tmp_path / ("x" * 250), b"")
    with pytest.raises(WriteError, match="could not be written: File name too long"):
        replace_folder(tmp_path / ("x" * 250), lambda folder: None)


def test_a_file_and_then_its_name_are_flushed(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (
            flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink())),
            fsync(handle),
        ),
    )
    replace_file(tmp_path / "a", b"")
    replace_folder(tmp_path / "b", lambda folder: (folder / "c").write_bytes(b""))
    shown = [re.sub(r"\.(\w)\.[0-9a-f]{16}\.tmp", r"\1", path) for path in flushed]
    inside = ["a", "", "b/c", "b", ""]
    assert shown == [str(tmp_path / name) for name in inside]


def test_nothing_is_written_outside_a_folder_which_may_be_a_link_itself(tmp_path):
    for name in ("study", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "study" / "mha").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "study" / "up").symlink_to("..")
    (tmp_path / "link").symlink_to(tmp_path / "study")
    study = tmp_path / "link"
    for path in (study / "mha", study / "mha" / "new", study / "up" / "x", study / "mha" / ".."):
        with pytest.raises(WriteError, match=r"leads to .*, outside .*: replace"):
            require_within(path, study)
    with pytest.raises(WriteError, match="outside"):
        replace_file(study / "mha" / "config.json", b"", within=study)
    assert names(tmp_path / "elsewhere") == []
    (study / "mqa").mkdir()
    replace_file(study / "mqa" / "config.json", b"", within=study)
    victim = tmp_path / "elsewhere" / "victim"
    victim.write_text("mine")
    (study / "report.md").symlink_to(victim)
    replace_file(study / "report.md", b"new", within=study)  # replaces the link, not its target
    assert (victim.read_text(), (study / "report.md").is_symlink()) == ("mine", False)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_weights_have_the_mode_of_other_files(tmp_path, umask):
    before = os.umask(umask)
    try:
        hidden = lambda path: (path.write_bytes(b"weights"), path.chmod(0o600))  # noqa: E731
        write_verified(tmp_path / "a", {"weights": hidden, "text": b""}, {})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").iterdir()}
    assert modes == {0o666 & ~umask}


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def turned_into_a_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def turned_into_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


DAMAGES = [
    *(flipped, Path.unlink, turned_into_a_folder, turned_into_a_pipe, linked_to_nothing),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(path.read_bytes() + b"0"),
    lambda path: path.write_bytes(b""),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tokens.npy", "tokens.npy.sha256"])
def test_a_damaged_cache_is_made_again(tmp_path, damage, name):
    path, content, made = tmp_path / "cache" / "tokens.npy", b"0123456789" * 10, []

    def write(file):
        made.append(file.write(content))

    for _ in range(2):
        assert verified_file(path, write).read_bytes() == content
    assert len(made) == 1
    damage(path.with_name(name))
    for _ in range(2):
        assert verified_file(path, write).read_bytes() == content
    assert len(made) == 2
    assert names(path.parent) == ["tokens.npy", "tokens.npy.sha256"]


def test_what_is_no_file_is_said_without_waiting(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(FileNotFoundError):
        open_regular(path)
    kinds = {"a pipe, not a file": os.mkfifo, "a folder, not a file": os.mkdir}
    for kind, make in kinds.items():
        make(path)
        with pytest.raises(DamagedError, match=rf"summary\.json is {kind}"):
            open_regular(path)
        path.rmdir() if path.is_dir() else path.unlink()
    for target, said in {
        "nothing": "a link to a file that does not exist",
        "summary.json": "no readable file: Too many levels of symbolic links",
        "/dev/zero": "a device, not a file",
    }.items():
        path.symlink_to(target)
        with pytest.raises(DamagedError, match=f"is {said}"):
            open_regular(path)
        path.unlink()
