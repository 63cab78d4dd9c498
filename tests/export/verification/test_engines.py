"""Engines on the simulated device: compared where there is a GPU, reported as not run where there is none."""

from pathlib import Path

import pytest

from starflow.export.verification.routes import NotRun, Route, default_reference, find_routes
from starflow.export.verification.tolerances import tolerances
from starflow.export.verification.verify import verify
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.traces.case import draw_case
from tests.export.verification.faults import faulty, nan_at
from tests.simulated_device.fixtures import Simulate


def only_route(bundle: Bundle) -> Route:
    ((route,), not_run) = find_routes(bundle, ["tensorrt"], bundle.manifest.variants)
    assert not not_run
    return route


def test_engines_agree_per_block_and_over_the_sample(simulate: Simulate, tiny_engines: Bundle) -> None:
    simulate()
    route = only_route(tiny_engines)
    assert route.name == "tensorrt portable-fp16"
    result = verify(tiny_engines, default_reference(tiny_engines), [route], draw_case(tiny_engines), tolerances())
    assert result.passed
    assert {(m.kind, m.block) for m in result.measurements} == {
        (kind, block) for kind in ("given", "block", "sample") for block in (0, 1)
    }


def test_nan_in_an_engines_output_is_named_by_block_and_position(simulate: Simulate, tiny_engines: Bundle) -> None:
    simulate()
    route = faulty(only_route(tiny_engines), nan_at(block=1, position=6, image=1))
    result = verify(tiny_engines, default_reference(tiny_engines), [route], draw_case(tiny_engines), tolerances())
    found = {(m.kind, m.finding) for m in result.measurements if m.block == 1}
    where = "it gave NaN or infinity in flow block 1 at position 6 (token 5, image 1)"
    assert found == {("given", where), ("block", where), ("sample", where)}
    assert all(m.passed for m in result.measurements if m.block == 0 and m.kind != "sample")


def test_a_truncated_engine_is_a_failure(simulate: Simulate, tiny_engines: Bundle) -> None:
    """Not "not run": there is a GPU for it."""
    simulate()
    route = only_route(tiny_engines)
    (path, *_) = sorted(tiny_engines.root.glob("engines/*/*/*.engine"))
    content = path.read_bytes()
    try:
        path.write_bytes(content[: len(content) // 2])
        result = verify(tiny_engines, default_reference(tiny_engines), [route], draw_case(tiny_engines), tolerances())
    finally:
        path.write_bytes(content)
    assert not result.passed
    (failure,) = result.failures
    assert failure.route == "tensorrt portable-fp16" and path.name in failure.what


def test_engines_for_another_gpu_are_not_run(simulate: Simulate, tiny_engines: Bundle) -> None:
    simulate(capability="12.0")
    routes, (skipped,) = find_routes(tiny_engines, ["tensorrt"], tiny_engines.manifest.variants)
    assert not routes and skipped.route == "tensorrt portable-fp16" and "12.0" in skipped.why


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_gpu_engines_are_not_run(tiny_engines: Bundle) -> None:
    routes, not_run = find_routes(tiny_engines, ["tensorrt"], tiny_engines.manifest.variants)
    assert not routes
    (skipped,) = not_run
    assert isinstance(skipped, NotRun) and "no usable NVIDIA GPU" in skipped.why
