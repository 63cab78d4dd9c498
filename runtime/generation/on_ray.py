"""Makes shards on a cluster of Ray, one actor for each device.

The unit of work of Ray Data is the number of a shard, and an actor writes its file. So a node that dies costs the shards that
its actors had begun: Ray gives them to other actors, and one that was finished is found where it lies.
"""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.exceptions import RayError

from starflow.runtime.generation.job import Job
from starflow.runtime.generation.shard_maker import MadeShard, ShardMaker
from starflow.runtime.plain.errors import StarflowError, UsageError, first_line

REACH_SECONDS = 10.0
REPEAT = "run the same command again, which makes what is missing"


class Actors(NamedTuple):
    """The actors of a run, and what each of them takes of its node."""

    number: int
    cpus: int
    gpus: int


class ShardActor:
    """Makes the shards whose numbers it is given."""

    def __init__(self, job: Job) -> None:
        self._maker = ShardMaker(job)

    def __call__(self, batch: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """What became of the shards of a batch: the fields of `MadeShard`, and what went wrong."""
        rows = [self._row(int(shard)) for shard in batch["shard"]]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _row(self, shard: int) -> dict[str, Any]:
        try:
            made, error = self._maker.make(shard), ""
        except StarflowError as refused:  # an exception would end the run with a traceback of Ray's
            made, error = MadeShard(shard, False, 0, 0.0), str(refused)
        return {**asdict(made), "error": error}


def make_on_ray(job: Job, shards: Sequence[int], address: str | None, actors: int | None) -> Iterator[MadeShard]:
    """Make shards on a cluster; each is reported when it is there, in any order.

    Args:
        job: What to make; its paths lead to the same files on every node.
        shards: Numbers of the shards.
        address: Address of a cluster, or `local` for one of this machine alone. None takes the one that the variable RAY_ADDRESS
            names, or that runs on this machine, or else starts a local one.
        actors: Number of actors. None takes one for each GPU, or for each node where no GPU is used.

    Raises:
        UsageError: the cluster cannot be reached, or has no room for so many actors.
        StarflowError: a shard cannot be made, or the run broke off.
    """
    with _connected(address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        each = place_actors(nodes, actors, gpus=_uses_gpus(job, nodes))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        made = numbers.map_batches(
            ShardActor,
            fn_constructor_kwargs={"job": _for_actors(job, each)},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(each.number, len(shards))),
            num_cpus=each.cpus,
            num_gpus=each.gpus,
        )
        try:
            for row in made.iter_rows():
                if row["error"]:
                    raise StarflowError(f"shard {row['shard']}: {row['error']}")
                yield MadeShard(int(row["shard"]), bool(row["written"]), int(row["images"]), float(row["seconds"]))
        except RayError as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]  # of a traceback, the last line
            raise StarflowError(f"Ray broke off: {reason[0]}; {REPEAT}") from error


def place_actors(nodes: Sequence[Mapping[str, float]], actors: int | None, *, gpus: bool) -> Actors:
    """How many actors there are, and what each takes.

    Args:
        nodes: Resources of each node.
        actors: Number of actors; None for one for each device.
        gpus: Whether each takes a GPU.

    Raises:
        UsageError: there is no room for so many.
    """
    if gpus:
        number = sum(int(node.get("GPU", 0)) for node in nodes)
        if (actors or 1) > number:
            raise UsageError(f"--actors {actors or 1}: this cluster has {number} GPUs, and each actor takes one")
        return Actors(actors or number, 1, 1)
    cores = [cpus for node in nodes if (cpus := int(node.get("CPU", 0)))]
    number = actors or len(cores)
    for cpus in range(max(cores, default=0), 0, -1):
        if sum(each // cpus for each in cores) >= number:
            return Actors(number, cpus, 0)
    raise UsageError(f"--actors {number}: this cluster has {sum(cores)} CPUs; give at most one actor for each")


def _uses_gpus(job: Job, nodes: Sequence[Mapping[str, float]]) -> bool:
    backend, provider = job.options["backend"], job.options["provider"]
    if backend == "auto" and provider == "cpu":
        return any(node.get("GPU", 0) for node in nodes)
    return backend == "tensorrt" or provider != "cpu"


def _for_actors(job: Job, each: Actors) -> Job:
    """The job for actors, which work in other folders; the threads of those that share a node must not be more than its cores."""
    bundle, folder = job.bundle, job.folder
    threads = {} if each.gpus or job.options["threads"] else {"threads": each.cpus}
    return replace(
        job,
        bundle=bundle.absolute() if bundle.is_dir() else bundle,
        folder=replace(folder, root=folder.root.absolute()),
        options=job.options | threads,
    )


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster, which is closed at the end unless it was there before.

    What Ray says goes to standard error, and is only what is wrong.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield
            return
        _check_reachable(address)
        is_main = threading.current_thread() is threading.main_thread()
        termination = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--ray {address or ''}: no cluster can be reached ({first_line(error)})") from error
        if is_main:
            signal.signal(signal.SIGTERM, termination)  # Ray's own ends the process at once
        try:
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """See that something listens where a cluster should; Ray itself tries for many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise UsageError(f"--ray {address}: no cluster can be reached ({error})") from None
