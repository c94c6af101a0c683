"""Files are written whole or not at all, inside their folder, and nothing temporary stays.

A run has one writer at a time, whatever dies, sleeps or comes at the same moment.
"""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from attnlab.record import HeldError, LostLeaseError, RunFolder, WriteError, lease, temporary_files
from attnlab.record.atomic_files import (
    DamagedError,
    open_regular,
    replace_file,
    replace_folder,
    require_results_folder,
    require_within,
    verified_file,
)
from attnlab.record.lease import STALE_SECONDS, Holder, Observer, holder_of, take, waiting_for
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

    def hidden(path):
        path.write_bytes(b"weights")
        path.chmod(0o600)

    before = os.umask(umask)
    try:
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


HERE = Holder.of_this_process()
ENDED = HERE._replace(started=1, id="a0")  # a process that had this id before this one
ELSEWHERE = HERE._replace(machine="0" * 12, id="b0", host="node-2")
HOLDS = """
import sys, time
from pathlib import Path
from attnlab.record.lease import take
take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "seed-0.lease"


@pytest.fixture
def clock(monkeypatch):
    """The clocks of this process; adding to the first of its seconds moves all of them."""
    seconds = [0.0]
    monotonic, now = lease.time.monotonic, lease._now
    monkeypatch.setattr(lease.time, "monotonic", lambda: monotonic() + seconds[0])
    monkeypatch.setattr(lease, "_now", lambda: now() + seconds[0])
    return seconds


def listed(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def held_by(path: Path, holder: Holder) -> Path:
    path.mkdir()
    file = path / holder.file_name()
    file.touch()
    return file


def at_once(number, act):
    """Call `act` in threads that start together; return the results that are no HeldError."""
    barrier, found = threading.Barrier(number), []

    def one():
        barrier.wait()
        with suppress(HeldError):
            found.append(act())

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("before", [None, "empty", ENDED, "stale"])
def test_of_many_takers_at_once_one_wins(path, before, clock):
    for _ in range(20):
        observers = [Observer() for _ in range(6)]
        if before == "empty":
            path.mkdir()
        elif before is not None:
            held_by(path, ELSEWHERE if before == "stale" else before)
        for observer in observers:
            observer.holder(path)
        clock[0] += STALE_SECONDS

        def act(observers=observers):
            observers.pop().holder(path)
            return take(path)

        (won,) = at_once(6, act)
        assert holder_of(path) == won.holder
        assert listed(path.parent) == ["seed-0.lease"]
        won.release()
        assert listed(path.parent) == []


def test_a_holder_on_another_machine_is_stale_when_its_beat_has_not_changed(path, clock):
    file, observer = held_by(path, ELSEWHERE), Observer()
    os.utime(file, (0, 0))  # the clock of the other machine, or of the file server, is years behind
    for beat in range(1, 4):
        clock[0] += STALE_SECONDS - 1
        assert observer.holder(path) == ELSEWHERE._replace(beat=beat - 1)
        file = file.rename(path / ELSEWHERE._replace(beat=beat).file_name())
        assert observer.holder(path) == ELSEWHERE._replace(beat=beat)
    with pytest.raises(HeldError, match=f"seed-0 is being written by process {HERE.pid} on node-2"):
        take(path)
    clock[0] += STALE_SECONDS
    assert observer.holder(path) is None
    take(path).release()


def test_a_beat_that_caches_hid_is_not_taken_over(path, clock, monkeypatch):
    """A network shows the old name for a while: the file system still refuses the takeover."""
    held_by(path, ELSEWHERE._replace(beat=7))
    observer = Observer()
    with monkeypatch.context() as patch:
        patch.setattr(lease, "holder_of", lambda _: ELSEWHERE)
        observer.holder(path)
        clock[0] += STALE_SECONDS
        assert observer.holder(path) is not None
    assert holder_of(path) == ELSEWHERE._replace(beat=7)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_dead_holder_on_this_machine_is_recognized_at_once(path, reaped):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(HeldError, match=f"process {process.pid} on "):
            take(path)
        process.send_signal(signal.SIGKILL)
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        take(path).release()
        process.wait()


def test_a_living_process_is_not_dead_where_its_state_cannot_be_read(path, monkeypatch):
    """As of another user's process under hidepid, or on a system without /proc."""
    held_by(path, ENDED)
    monkeypatch.setattr(lease, "_started", lambda _: None)
    with pytest.raises(HeldError):
        take(path)


def test_a_holder_that_slept_writes_nothing_more_and_says_who_has_the_run(tmp_path, clock):
    run = RunFolder(tmp_path, "mha", 0)
    with run.hold():
        run.open({"identity": "same"}, {})
        run.append({"step": 1})
        clock[0] += 3600
        run.append({"step": 2})  # nobody was there meanwhile
        (file,) = run.lease.iterdir()
        clock[0] += 3600
        other = file.rename(run.lease / ELSEWHERE.file_name())
        before = {path: path.read_bytes() for path in run.partial.rglob("*") if path.is_file()}
        for write in (
            lambda: run.append({"step": 3}),
            lambda: run.finish({"status": "finished"}),
            lambda: run.fail("it failed"),
            lambda: run.open({"identity": "same"}, {}),
            lambda: run.write_metrics([]),
        ):
            with pytest.raises(LostLeaseError, match=f"process {HERE.pid} on node-2 has taken it"):
                write()
    after = {path: path.read_bytes() for path in run.partial.rglob("*") if path.is_file()}
    assert after == before
    assert other.exists()


def test_a_command_that_needs_a_run_now_observes_a_holder_on_another_machine(
    path, clock, monkeypatch
):
    file = held_by(path, ELSEWHERE)
    monkeypatch.setattr(lease.time, "sleep", lambda _: clock.__setitem__(0, clock[0] + 1))
    take(path, observing=True).release()  # it had crashed
    assert STALE_SECONDS <= clock[0] < STALE_SECONDS + 2

    file = held_by(path, ELSEWHERE)
    following = path / ELSEWHERE._replace(beat=1).file_name()
    monkeypatch.setattr(lease.time, "sleep", lambda _: file.rename(following))
    with pytest.raises(HeldError, match="on node-2"):
        take(path, observing=True)


def test_an_ended_run_keeps_no_lease_of_a_killed_process(tmp_path):
    run = RunFolder(tmp_path, "mha", 0)
    run.open({"identity": "same"}, {})
    run.finish({"status": "finished"})
    held_by(run.lease, ENDED)
    run.finalize()
    assert not run.lease.exists()


def test_a_removed_lease_is_lost(path, clock):
    one = take(path)
    (path / one.holder.file_name()).unlink()
    clock[0] += 3600
    with pytest.raises(LostLeaseError, match="its lease was removed"):
        one.require()
    one.release()


def test_a_request_that_a_network_repeats_has_succeeded(path):
    one = take(path)
    (path / one.holder.file_name()).rename(path / one.holder._replace(beat=1).file_name())
    one.renew()
    assert not one.lost
    one.release()
    assert not path.exists()


def test_the_lease_is_renewed_in_the_background_until_it_is_released(path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    one, seen = take(path), set()
    while len(seen) < 3:
        seen.add(holder_of(path))
    assert {holder.id for holder in seen if holder} == {one.holder.id}
    one.release()
    assert not path.exists()


def test_a_lease_that_no_thread_can_renew_is_not_taken(path, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("no thread")))
    with pytest.raises(WriteError, match=r"seed-0\.lease could not be written: no thread"):
        take(path)
    assert not path.exists()


def test_waiting_ends_when_the_holder_releases_the_lease(path):
    one = take(path)
    threading.Timer(0.1, one.release).start()
    with waiting_for(path):
        assert holder_of(path).id != one.holder.id


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_no_lease_is_named_and_left(path, there, monkeypatch):
    monkeypatch.setattr(lease, "_PAUSE_SECONDS", 0)
    if there == "file":
        path.write_text("mine")
    else:
        held_by(path, ELSEWHERE).rename(path / "mine")
    with pytest.raises(WriteError, match=r"seed-0\.lease"):
        take(path)
    assert listed(path.parent) == ["seed-0.lease"]


@pytest.mark.parametrize("host", ["node1", "a.b-c_d", "x,pid-1", "ü/..", "h" * 64])
def test_a_file_name_gives_its_holder_back(host):
    holder = HERE._replace(host=host, beat=3)
    assert Holder.parse(holder.file_name()) == holder
    assert Holder.parse(f".nfs{holder.file_name()}") is None
    assert len(holder.file_name()) < 256


@pytest.mark.parametrize("within", ["", "x/y"])
def test_no_results_are_written_to_the_folder_of_a_run(tmp_path, within):
    run = tmp_path / "mha" / "seed-0"
    run.mkdir(parents=True)
    require_results_folder(run / within)
    (run / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^out: .*seed-0 is the folder of a run; choose another"):
        require_results_folder(run / within)
