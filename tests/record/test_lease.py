"""A run has one writer at a time, whatever dies, sleeps or comes at the same moment."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from attnlab.record import HeldError, LostLeaseError, RunFolder, WriteError, lease
from attnlab.record.lease import STALE_SECONDS, Holder, Observer, holder_of, take, waiting_for

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


def names(folder: Path) -> list[str]:
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
        assert names(path.parent) == ["seed-0.lease"]
        won.release()
        assert names(path.parent) == []


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
    assert names(path.parent) == ["seed-0.lease"]


@pytest.mark.parametrize("host", ["node1", "a.b-c_d", "x,pid-1", "ü/..", "h" * 64])
def test_a_file_name_gives_its_holder_back(host):
    holder = HERE._replace(host=host, beat=3)
    assert Holder.parse(holder.file_name()) == holder
    assert Holder.parse(f".nfs{holder.file_name()}") is None
    assert len(holder.file_name()) < 256
