"""Builds that end badly, in a process of their own: the bundle stays as it was, and the next build finishes."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from starflow.runtime.bundle.build_record import check_engine_file, read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.lock import bundle_lock
from tests.export.tensorrt.conftest import RTX


def start(root: Path, *options: str, limit: int | None = None) -> subprocess.Popen[str]:
    """Begin a build; no file it writes may have more than `limit` bytes."""

    def prepare() -> None:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a background job of a shell inherits that it is ignored
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "starflow.runtime", "build", str(root), "--target", RTX, "--json"]
    command += ["--profile-tokens", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)


def finish(build: subprocess.Popen[str]) -> tuple[int, list[bool], str]:
    """Exit status, whether each engine was there already, and what was said on standard error."""
    out, said = build.communicate(timeout=120)
    return build.returncode, [each["unchanged"] for each in json.loads(out)["engines"]] if out else [], said


def files(root: Path) -> list[str]:
    """Names of everything the last build left, but the lock."""
    found = (path for path in (root / "engines").rglob("*") if path.is_file())
    return sorted(path.name.partition("-")[0] for path in found)


def wait_for(root: Path, block: int, build: subprocess.Popen[str]) -> None:
    """Until TensorRT works on a flow block."""
    deadline = time.monotonic() + 60
    while not list((root / "engines").rglob(f".block{block}-*.engine.*")):
        assert build.poll() is None, "the build ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check_whole(root: Path) -> None:
    bundle = Bundle.open(root)
    bundle.verify_hashes()
    (record,) = read_builds(bundle)
    assert [engine.block for engine in record.engines] == [0, 1]
    for engine in record.engines:
        check_engine_file(bundle, record, engine, digest=True)
    assert files(root) == ["block0", "block1", "build.json"]


def test_killed(copy: Path) -> None:
    build = start(copy)
    wait_for(copy, 1, build)
    build.kill()
    assert finish(build)[0] == -signal.SIGKILL
    assert files(copy) == [".block1", "block0"]  # a part of an engine that no build will take for one
    assert list(read_builds(Bundle.open(copy))) == []
    assert finish(start(copy)) == (0, [True, False], "")
    check_whole(copy)


@pytest.mark.parametrize("anew", [("--optimization-level", "1"), ("--force",)])
def test_killed_while_building_anew(built: Path, anew: tuple[str, ...]) -> None:
    """The engines of before stay in use until the new ones are all there."""
    build = start(built, *anew)
    wait_for(built, 1, build)
    build.kill()
    build.communicate()
    bundle = Bundle.open(built)
    (record,) = read_builds(bundle)
    assert record.options.optimization_level is None
    for engine in record.engines:
        check_engine_file(bundle, record, engine, digest=True)
    assert files(built).count("block0") == 2
    assert finish(start(built))[0] == 0
    check_whole(built)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(copy: Path, number: signal.Signals) -> None:
    build = start(copy)
    wait_for(copy, 1, build)
    build.send_signal(number)
    status, _, said = finish(build)
    assert (status, said) == (130, "interrupted; nothing half-written is left\n")
    assert files(copy) == ["block0"]


def test_a_file_that_may_not_grow(copy: Path) -> None:
    status, _, said = finish(start(copy, limit=500_000))
    assert status == 1
    assert said.startswith("starflow build: error: ") and said.count("\n") == 1
    assert ".engine: cannot be written (File too large); free some space" in said
    assert files(copy) == []


@pytest.fixture
def small_disk(copy: Path) -> Iterator[Path]:
    """The bundle's engines on a file system of 1 MiB: more than the weights, less than an engine."""
    engines = copy / "engines"
    engines.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(engines)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield copy
    subprocess.run(["umount", str(engines)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    status, _, said = finish(start(small_disk))
    assert status == 1
    assert said.startswith("starflow build: error: ") and said.count("\n") == 1
    assert ".engine: cannot be written (No space left on device); free some space" in said
    assert files(small_disk) == []


def test_two_builds_at_once(copy: Path) -> None:
    """Both wait for this process to let go; then one builds, and the other finds what was built."""
    with bundle_lock(copy, "work"):
        builds = [start(copy), start(copy)]
        for build in builds:
            assert build.stderr is not None
            assert build.stderr.readline() == "waiting for another build of this bundle to end\n"
    assert sorted(finish(build) for build in builds) == [(0, [False, False], ""), (0, [True, True], "")]
    check_whole(copy)


def test_engines_do_not_leave_the_bundle(copy: Path, tmp_path: Path) -> None:
    """A bundle from elsewhere may hold a link to any folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (copy / "engines").symlink_to(elsewhere)
    status, _, said = finish(start(copy))
    assert status == 1 and "leads out of the bundle; remove it" in said and said.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_a_bundle_that_cannot_be_written(copy: Path) -> None:
    (copy / "engines").write_bytes(b"not a folder")
    status, _, said = finish(start(copy))
    assert status == 2
    assert "is not a folder you can write to" in said and said.count("\n") == 1
