"""The connection to a Ray cluster: what it has, and what one run takes of it.

Ray is the extra `ray`, imported when a study is to run on it.
"""

import fcntl
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4


class Needs(NamedTuple):
    """The resources of one run."""

    gpus: int  # 0: it computes on CPUs
    cpus: int
    processes: int = 1  # one per GPU; on CPUs, any number

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}"
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)} and {cpus}" if self.gpus else cpus

    def devices(self) -> tuple[str, ...]:
        """Return the devices of an actor, which sees its own GPUs alone."""
        return tuple(f"cuda:{n}" for n in range(self.gpus)) or ("cpu",) * self.processes


class Cluster:
    """A connection to a Ray cluster, or to a Ray of this machine alone that it starts."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to a cluster.

        Args:
            address: host:port or ray://host:port; by default that of RAY_ADDRESS, else the cluster
                that this machine is a node of, else a new one of this machine alone. With `auto` no
                new one is started.

        Raises:
            ValueError: Ray is not installed, or there is no cluster at the address.
        """
        if find_spec("ray") is None:
            raise ValueError("Ray is not installed: pip install ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that starts sends no reports
        self.ray = import_module("ray")
        # Ray prints the deaths of its processes to stdout, which is that of --json
        vars(import_module("ray._private.worker"))["print_to_stdstream"] = _print_nothing
        self._own = not self.ray.is_initialized()
        if not self._own:
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.ray.init(
                address=address,
                include_dashboard=None if address else False,  # of one that starts
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"no Ray cluster at {address or 'this machine'}: {reason}; if the cluster asks for "
                "a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as it is there"
            ) from None
        finally:
            with suppress(ValueError):  # not the main thread
                for number, handler in before.items():
                    signal.signal(number, handler)

    def close(self) -> None:
        """Disconnect. The actors of this process end, and a Ray that it started."""
        if self._own:
            self.ray.shutdown()

    def nodes(self) -> dict[str, str]:
        """Return the names of the nodes that are alive, by id: host names where none is given."""
        return {
            node["NodeID"]: (
                node["NodeManagerHostname"]
                if node["NodeName"] == node["NodeManagerAddress"]
                else node["NodeName"]
            )
            for node in self.ray.nodes()
            if node["Alive"]
        }

    def describe(self) -> str:
        """Return what the cluster has, as in "2 nodes with 16 CPUs and 8 GPUs"."""
        nodes = len(self.nodes())
        return f"{nodes} node{'s' * (nodes != 1)} with {_counted(self.ray.cluster_resources())}"

    def free(self) -> str:
        """Return what no actor has, as in "3 CPUs and 0 GPUs"."""
        return _counted({"CPU": 0.0, **self.ray.available_resources()})

    def needs(self, device: str, gpus_per_run: int = 1, cpus_per_run: int | None = None) -> Needs:
        """Return the resources of a run on `cpu`, on `cuda`, or (`auto`) on GPUs if there are."""
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        on_gpus = device == "cuda" or (device == "auto" and has_gpus)
        return Needs(gpus_per_run if on_gpus else 0, cpus_per_run or gpus_per_run, gpus_per_run)

    def fits(self, needs: Needs) -> int:
        """Return the number of runs that the nodes can execute at the same time."""
        found = 0
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            by_cpu = int(has.get("CPU", 0) // needs.cpus)
            found += min(by_cpu, int(has.get("GPU", 0) // needs.gpus)) if needs.gpus else by_cpu
        return found


def _counted(resources: Mapping[str, float]) -> str:
    found = [
        f"{resources[kind]:g} {kind}{'s' * (resources[kind] != 1)}"
        for kind in ("CPU", "GPU")
        if kind in resources
    ]
    return " and ".join(found) or "no CPUs"


class Capacity(NamedTuple):
    """The runs that are executed at the same time, and where."""

    workers: int  # at least 1: a run that finds no room waits for it
    devices: tuple[str, ...]
    notes: tuple[str, ...] = ()  # for the user, a sentence each


def capacity(
    address: str | None, device: str, gpus_per_run: int, cpus_per_run: int | None, most: int
) -> Capacity | None:
    """Return the present capacity of a Ray cluster; None if none runs and no address is given.

    Args:
        address: that of the cluster, as for `Cluster`; nothing is started.
        device, gpus_per_run, cpus_per_run: as for `Cluster.needs`.
        most: the largest number of runs at the same time.

    Raises ValueError if Ray is not installed, or there is no cluster at the address.
    """
    try:
        cluster = Cluster(address or "auto")
    except ValueError:
        if address is not None or find_spec("ray") is None:
            raise
        return None
    try:
        needs = cluster.needs(device, gpus_per_run, cpus_per_run)
        fits, has = cluster.fits(needs), cluster.describe()
    finally:
        cluster.close()
    now = f"{fits} fit now, and others wait" if fits else "none fits now, so all wait"
    return Capacity(
        max(1, min(fits, most)),
        (f"{needs} each",),
        (
            f"Ray: the cluster has {has}; a run takes {needs}: {now} for a node that becomes free "
            "or joins, as where a cluster scales",
            "times are those of this machine, not of a node of the cluster",
        ),
    )


class Token:
    """A file in the study's folder by which actors find out if they share the folder."""

    def __init__(self, study_dir: Path) -> None:
        self.content = uuid4().hex.encode()
        self.path = study_dir / f".ray.{uuid4().hex[:8]}.tmp"
        self._file = self.path.open("xb")
        with suppress(OSError):  # file systems without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)  # `remove_temporary` leaves it
        self._file.write(self.content)
        self._file.flush()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()


def reason_of(error: Any) -> str:
    """Return in a few words why an actor died, from Ray's error."""
    text = str(error)
    if getattr(error, "actor_init_failed", False):
        return text.strip().splitlines()[-1]
    if getattr(error, "preempted", False):
        return "its node was preempted"
    if type(error).__name__ == "OutOfMemoryError" or "low on memory" in text:
        return "its node has run out of memory"
    if "unavailable" in text:
        return "its node does not answer"
    return "its node died" if "node has died" in text else "its process died"


def _print_nothing(*_: object, **__: object) -> None:
    """Do nothing, in place of a function of Ray's that prints."""
