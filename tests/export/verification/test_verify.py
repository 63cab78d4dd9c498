"""Routes that agree are found to agree, and every planted fault is found, with its place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.verification.routes import NotRun, Route, choose_variants, default_reference, find_routes
from starflow.export.verification.tolerances import tolerances
from starflow.export.verification.torch_reference import TorchReference
from starflow.export.verification.verify import Verification, verify
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.traces.autoregressive import chunk_size
from starflow.runtime.traces.case import draw_case
from starflow.training.config import CheckpointConfig
from tests.export.verification.faults import Fault, broken, faulty, lost_first_key, more_guidance, nan_at
from tests.models import class_config, features_config, tarflow_config, unconditional_config, write_checkpoint


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def route_of(bundle: Bundle, name: str) -> Route:
    ((route,), _) = find_routes(bundle, ["onnxruntime"], choose_variants(bundle, [name]))
    return route


def verify_faulty(bundle: Bundle, variant: str, fault: Fault, **case: Any) -> Verification:
    route = faulty(route_of(bundle, variant), fault)
    return verify(bundle, default_reference(bundle), [route], draw_case(bundle, **case), tolerances())


CONFIGS: dict[str, CheckpointConfig] = {
    "class token": class_config(),
    "no start token, all blocks guided": class_config(sos=False, cond_top_only=False, use_softplus=False, soft_clip=2),
    "features": features_config(),
    "unconditional": unconditional_config(),
    "tarflow": tarflow_config(),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_onnxruntime_agrees_with_torch(tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path / "checkpoint", CONFIGS[kind])
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(precisions=("fp32", "fp16"), batch=2))
    bundle = Bundle.open(tmp_path / "bundle")
    routes, not_run = find_routes(bundle, ["onnxruntime"], bundle.manifest.variants)
    case = draw_case(bundle, images=3)
    result = verify(
        bundle, TorchReference(tmp_path / "checkpoint", bundle), routes, case, tolerances(), not_run=not_run
    )
    assert len(case.noise) == 4, "in whole batches"
    assert result.passed and not result.not_run
    assert {(m.route, m.kind, m.block) for m in result.measurements} == {
        (f"onnxruntime {variant}", kind, block)
        for variant in ("portable-fp32", "cpu-fp32", "portable-fp16", "cpu-fp16")
        for kind in ("given", "block", "sample")
        for block in (0, 1)
    }
    half = [m for m in result.measurements if m.route == "onnxruntime portable-fp16" and m.kind == "given"]
    assert all(m.relative and m.relative > 1e-5 for m in half), "half precision that costs nothing was not run"


def test_network_interpreter_agrees(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    routes, not_run = find_routes(bundle, ["network"], bundle.manifest.variants)
    result = verify(bundle, default_reference(bundle), routes, draw_case(bundle), tolerances(), not_run=not_run)
    assert [route.name for route in routes] == ["network portable-fp32", "network portable-fp16"]
    assert result.passed and not not_run


@pytest.mark.parametrize("variant", ["portable-fp32", "cpu-fp32"])
def test_nan_is_named_by_block_and_position_and_ends_nothing(bundle: Bundle, variant: str) -> None:
    """Block 1 has one condition token: position 6 is its token 5."""
    result = verify_faulty(bundle, variant, nan_at(block=1, position=6, image=1))
    assert not result.passed and not result.failures
    by_place = {(m.kind, m.block): m for m in result.measurements}
    assert len(by_place) == 6, "nothing was left out"
    where = "it gave NaN or infinity in flow block 1 at position 6 (token 5, image 1)"
    for kind in result.subject.kinds:
        assert by_place[kind, 1].finding == where
    # Fed back, it spoils all that follows in its block; with inputs given, that one token only.
    assert [error is None for error in by_place["block", 1].per_token] == [token >= 5 for token in range(16)]
    assert [token for token, error in enumerate(by_place["given", 1].per_token) if error is None] == [5]
    below = by_place["given", 0], by_place["block", 0]
    assert all(m.passed for m in below), "the block below is judged on the reference's noise"
    assert not by_place["sample", 0].passed


def test_nan_does_not_reach_the_next_sequence(bundle: Bundle) -> None:
    """A masked position counts for 0 times what lies in the cache: NaN, unless the caches are cleared."""
    result = verify_faulty(bundle, "portable-fp32", nan_at(block=1, position=6, image=0, sequences=1), images=4)
    assert {m.kind for m in result.measurements if m.finding} == {"sample"}, "only the first sequence was poisoned"
    (sampled,) = [m for m in result.measurements if m.finding and m.block == 1]
    assert (sampled.image, sampled.position) == (0, 6)


def test_nan_in_the_reference_is_its_own_fault(bundle: Bundle) -> None:
    reference = faulty(route_of(bundle, "cpu-fp32"), nan_at(block=0, position=3, image=0), "reference")
    result = verify(bundle, reference, [route_of(bundle, "portable-fp32")], draw_case(bundle), tolerances())
    assert not result.passed
    found = {m.finding for m in result.measurements if m.block == 0}
    assert found == {"the reference gave NaN or infinity in flow block 0 at position 3 (token 3, image 0)"}


def test_a_slightly_wrong_weight_of_guidance_is_found(bundle: Bundle) -> None:
    result = verify_faulty(bundle, "portable-fp32", more_guidance)
    failing = {(m.kind, m.block) for m in result.measurements if not m.passed}
    assert {("given", 1), ("block", 1), ("sample", 1)} <= failing
    assert not {("given", 0), ("block", 0)} & failing, "the block without guidance is right"


def test_a_key_that_gets_lost_between_chunks_is_found(bundle: Bundle) -> None:
    """Single steps do not go through `run` on ONNX Runtime, so chunks alone show this one."""
    result = verify_faulty(bundle, "portable-fp32", lost_first_key)
    assert {(m.kind, m.block) for m in result.measurements if not m.passed} >= {("given", 0), ("given", 1)}
    chunk = chunk_size(16, 17)
    shallow = next(m for m in result.measurements if (m.kind, m.block) == ("given", 0))
    errors = np.array(shallow.per_token, float)
    assert errors[:chunk].max() < 1e-5 < errors[chunk:].min(), "the first chunk needs no cache"


def test_a_route_that_breaks_down_is_reported_and_the_others_go_on(bundle: Bundle) -> None:
    good = route_of(bundle, "portable-fp32")
    result = verify(bundle, default_reference(bundle), [broken(bundle, good), good], draw_case(bundle), tolerances())
    assert not result.passed
    (failure,) = result.failures
    assert (failure.route, failure.what) == ("broken", "the engine is of another release; build it again")
    assert {m.route for m in result.measurements} == {good.name} and all(m.passed for m in result.measurements)


def test_what_did_not_run_proves_nothing(bundle: Bundle) -> None:
    reference = default_reference(bundle)
    not_run = [NotRun("tensorrt portable-fp16", "no GPU")]
    result = verify(bundle, reference, [reference], draw_case(bundle), tolerances(), not_run=not_run)
    assert result.measurements and all(m.passed for m in result.measurements)
    assert not result.compared and not result.passed


def test_the_reference_shows_what_a_unit_in_the_last_place_does(bundle: Bundle) -> None:
    route = default_reference(bundle)
    result = verify(bundle, route, [route], draw_case(bundle), tolerances())
    assert list(result.sensitivity) == [1, 0]
    for errors in result.sensitivity.values():
        assert errors.shape == (16,) and (errors > 0).all() and (errors < 1e-4).all()


def test_images_are_those_the_sampler_makes(bundle: Bundle) -> None:
    from starflow.runtime import Sampler

    route = default_reference(bundle)
    case = draw_case(bundle, seed=5)
    result = verify(bundle, route, [], case, tolerances())
    with Sampler.open(bundle.root, backend="onnxruntime", variant="cpu-fp32", threads=1) as sampler:
        expected = sampler.sample([0, 1], guidance=1.0, seed=5)
    assert np.array_equal(result.images[route.name], expected)


def test_another_checkpoint_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    write_checkpoint(tmp_path / "other", class_config(), seed=1)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        TorchReference(tmp_path / "other", bundle)


def test_a_bundle_without_float32_needs_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "bundle", ExportOptions(precisions=("bf16",)))
    with pytest.raises(UsageError, match="--checkpoint"):
        default_reference(Bundle.open(tmp_path / "bundle"))


@pytest.mark.parametrize(("length", "most"), [(49, 50), (49, 4), (2, 50), (1, 1), (16, 17)])
def test_chunks_begin_on_caches_that_chunks_wrote(length: int, most: int) -> None:
    size = chunk_size(length, most)
    assert 1 <= size <= most and -(-length // size) >= min(3, length)
