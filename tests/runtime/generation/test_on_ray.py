"""A set on a real cluster of two nodes, one of which is killed: only shards that were open are made again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from starflow.runtime.plain.errors import UsageError

ray = pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")

from starflow.runtime.generation.on_ray import Actors, place_actors  # noqa: E402

SHARDS = 20
SET = (
    "--labels",
    "0-3",
    "--guidance",
    "2",
    "--seed",
    "7",
    "--count",
    "3000",
    "--threads",
    "1",
    "--shards",
    str(SHARDS),
)


def test_an_actor_takes_a_device() -> None:
    mixed: list[dict[str, float]] = [{"CPU": 8.0}, {"CPU": 3.0}, {}]
    assert place_actors(mixed, None, gpus=False) == Actors(2, 4, 0)  # both fit on the large node
    assert place_actors(mixed, 4, gpus=False) == Actors(4, 2, 0)
    assert place_actors(mixed, 11, gpus=False) == Actors(11, 1, 0)
    assert place_actors([{"CPU": 4.0}, {"CPU": 4.0}], None, gpus=False) == Actors(2, 4, 0)
    assert place_actors([{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}], None, gpus=True) == Actors(3, 1, 1)
    with pytest.raises(UsageError, match="--actors 12: this cluster has 11 CPUs"):
        place_actors(mixed, 12, gpus=False)
    with pytest.raises(UsageError, match="--actors 2: this cluster has 1 GPUs"):
        place_actors([{"CPU": 4.0, "GPU": 1.0}], 2, gpus=True)


def test_a_cluster_that_is_not_there_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    refused = subprocess.run(command(tiny_bundle, tmp_path, "--ray", "127.0.0.1:1"), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--ray 127.0.0.1:1: no cluster can be reached" in refused.stderr.splitlines()[-1]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A cluster with one CPU for each of two nodes, and its second node."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(
        "RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9"
    )  # reports are off, and so is the one that says so
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digest of every file of the set, made without Ray."""
    out = tmp_path_factory.mktemp("here")
    subprocess.run(command(tiny_bundle, out), check=True, stdout=subprocess.DEVNULL)
    return digests(out)


def command(bundle: Path, out: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "starflow.runtime",
        "generate",
        str(bundle),
        *SET,
        "--out",
        str(out),
        "--json",
        *words,
    ]


def summary(output: str) -> dict[str, Any]:
    """What the command printed; what Ray says goes elsewhere."""
    found: dict[str, Any] = json.loads(output)
    return found


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [*shards(folder), folder / "_set.json"]
    }


def stamps(paths: list[Path]) -> dict[str, tuple[int, int]]:
    """Inode and time of change: a file that was made again has others, even with the same content."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def wait_for_shards(folder: Path, number: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while len(shards(folder)) < number:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def kill_node(node: Any) -> None:
    """Kill a node's processes as a power failure does, its actors among them."""
    doomed = [info.process.pid for infos in node.all_processes.values() for info in infos]
    for pid in doomed:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError):  # the thread has ended since
                doomed += map(int, (task / "children").read_text().split())
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_node_costs_its_open_shards_alone(
    tiny_bundle: Path, tmp_path: Path, two_nodes: tuple[Any, Any], expected: dict[str, str]
) -> None:
    cluster, node = two_nodes
    ray_words = ("--ray", cluster.address, "--actors", "2")
    process = subprocess.Popen(command(tiny_bundle, tmp_path, *ray_words), stdout=subprocess.PIPE, text=True)
    wait_for_shards(tmp_path, 8, process)
    before = stamps(shards(tmp_path))
    kill_node(node)
    output, _ = process.communicate(timeout=240)
    print(f"{len(before)} shards when the node was killed; {output}")
    assert process.returncode == 0
    assert summary(output)["missing"] == []
    assert {name: stamp for name, stamp in stamps(shards(tmp_path)).items() if name in before} == before
    assert digests(tmp_path) == expected


@pytest.mark.slow
def test_the_same_command_again_makes_exactly_what_is_missing(
    tiny_bundle: Path, tmp_path: Path, two_nodes: tuple[Any, Any], expected: dict[str, str]
) -> None:
    cluster, node = two_nodes
    process = subprocess.Popen(
        command(tiny_bundle, tmp_path, "--ray", cluster.address, "--actors", "2"), stdout=subprocess.DEVNULL
    )
    wait_for_shards(tmp_path, 8, process)
    process.kill()
    kill_node(node)
    process.wait()
    quiet = time.monotonic()
    before = stamps(shards(tmp_path))
    while time.monotonic() < quiet + 5:  # the actor on the node that lives learns of it later
        if stamps(shards(tmp_path)) != before:
            quiet, before = time.monotonic(), stamps(shards(tmp_path))
        time.sleep(0.05)
    listed = subprocess.run(command(tiny_bundle, tmp_path, "--missing"), check=True, capture_output=True, text=True)
    missing = summary(listed.stdout)["missing"]
    assert len(missing) == SHARDS - len(before) > 0
    again = subprocess.run(
        command(tiny_bundle, tmp_path, "--ray", cluster.address, "--actors", "1"), stdout=subprocess.PIPE, text=True
    )
    print(f"{len(before)} shards after the kill; missing {missing}; {again.stdout}")
    assert again.returncode == 0
    assert summary(again.stdout)["written"] == missing and summary(again.stdout)["missing"] == []
    assert {name: stamp for name, stamp in stamps(shards(tmp_path)).items() if name in before} == before
    assert digests(tmp_path) == expected
