"""C++ samples what Python samples, from the same bundles: latents and pixels."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.calibration.weights.plain_rounding import round_plainly
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Steps, Window
from starflow.training.autoregressive.config import TarflowConfig
from tests.cpp_library import REPOSITORY, CppError, CppSampler
from tests.edited_manifest import edit_manifest
from tests.models import class_config, points_config, tarflow_config, write_checkpoint, write_velocity

pytestmark = pytest.mark.usefixtures("cpp_folder")

SHIPPED = REPOSITORY / "runtime/shipped/digits"
CLOSE = 1e-6


def compare(
    bundle: Path,
    count: int,
    condition: NDArray | None,
    null_condition: NDArray | None = None,
    *,
    plan: Any = "auto",
    plan_file: Path | None = None,
    variant: str | None = None,
    shape: tuple[int, int] | None = None,
    seed: int = 7,
    **how: Any,
) -> NDArray:
    """Sample the same images both ways; the data, once they are alike."""
    with Sampler.open(bundle, variant=variant, plan=plan, shape=shape, threads=1) as sampler:
        noise = sampler.noise(count, seed)
        expected = sampler.generate(noise, condition, null_condition, **how)
        data_shape, makes_images = sampler.manifest.model.data_shape, sampler.manifest.output == "images"
        denoise = how.get("denoise", "auto")
        pixels = sampler.to_images(expected, denoise=denoise) if makes_images else None
    options: dict[str, Any] = {"variant": variant} if variant else {}
    if shape:
        options |= {"height": shape[0], "width": shape[1]}
    named = str(plan_file) if plan_file else plan
    with CppSampler(bundle, data_shape, threads=1, plan=named, **options) as other:
        found = other.generate(noise, condition, null_condition, **how)
        np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)
        assert np.abs(found).max() > 0.1
        if pixels is not None:
            differ = np.mean(other.to_images(found, denoise) != pixels)
            assert differ <= 1e-3
    return found


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("count", [1, 9, 11])
def test_int8_with_byte_caches_in_two_batch_sizes(guidance: float, count: int) -> None:
    compare(SHIPPED, count, np.arange(count) % 10, guidance=guidance)


def test_guidance_of_each_image() -> None:
    compare(SHIPPED, 3, np.array([1, 2, 3]), guidance=[0.0, Guidance(1.3), Guidance(2.0, schedule=(1, 1, 1, 0.3))])


@pytest.mark.parametrize("variant", ["cpu-fp32", "cpu-fp16", "portable-fp32", "portable-fp16"])
def test_lowerings_and_precisions(tiny_bundle: Path, variant: str) -> None:
    compare(tiny_bundle, 3, np.array([0, 1, 2]), variant=variant, guidance=1.5)


def test_products_by_row_and_recorded_times(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", class_config(channels=128, layers_per_block=(1, 1)))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=3))
    bundle = Bundle.open(tmp_path / "bundle")
    (variant,) = round_plainly(bundle, "int8", ["cpu"], product="row")
    assert variant.quantization and "int8-row" in variant.quantization.matrices.values()
    compare(tmp_path / "bundle", 3, np.array([0, 1, 2]), variant="cpu-int8", guidance=1.5)

    def timed(content: dict[str, Any]) -> None:
        times = {"processor": "Z80", "batches": [{"batch": 3, "step": 0.5, "chunk": 0.5}]}
        quantised = next(each for each in content["variants"] if each["name"] == "cpu-int8")
        quantised["quantization"]["timing"] = times

    edit_manifest(tmp_path / "bundle", timed)
    compare(tmp_path / "bundle", 3, np.array([0, 1, 2]), variant="cpu-int8", guidance=1.5)
    edit_manifest(tmp_path / "bundle", lambda content: content.update(schema_version=1))
    with pytest.raises(CppError, match="with times or products by row"):
        CppSampler(tmp_path / "bundle", bundle.manifest.model.data_shape)


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
def test_patches_of_every_block(patches_bundle: Path, tmp_path: Path, variant: str) -> None:
    sequential = compare(patches_bundle, 3, np.array([0, 1, 2]), variant=variant, guidance=1.5)
    plan = DecodePlan(
        blocks=(
            BlockPlan(block=2, segments=(Steps(tokens=1), Chunk(tokens=3, passes=2))),
            BlockPlan(block=1, segments=(Window(tokens=8, width=4, advances=(1, 3, 2, 2)),)),
        )
    )
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    how: dict[str, Any] = {"variant": variant, "guidance": 1.5, "plan": plan, "plan_file": tmp_path / "plan.json"}
    found = compare(patches_bundle, 3, np.array([0, 1, 2]), **how)
    assert np.abs(found - sequential).max() > CLOSE, "the plan changed nothing"


def test_a_tarflow_with_patches_of_every_block(tmp_path: Path) -> None:
    """Channels first, a learned prior, no start token."""
    options = tarflow_config().model.model_dump() | {"in_channels": 2, "block_patch_sizes": ((4, 8), (2, 4))}
    write_checkpoint(tmp_path / "checkpoint", tarflow_config().model_copy(update={"model": TarflowConfig(**options)}))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=2))
    compare(tmp_path / "bundle", 3, np.array([0, 2, 1]), guidance=1.5)


def segments(kinds: Iterable[Any], tokens: int) -> tuple[Any, ...]:
    """Segments of the kinds in turn, until they cover all tokens."""
    made, left = [], tokens
    for kind in kinds:
        size = min(kind.tokens, left)
        if size:
            made.append(kind.model_copy(update={"tokens": size}))
        left -= size
    return (*made, *([Steps(tokens=left)] if left else []))


PLANS: dict[str, list[Any]] = {
    "passes": [Chunk(tokens=5, passes=2), Steps(tokens=1), Chunk(tokens=4, passes=3, guess="previous", caches="exact")],
    "image": [Chunk(tokens=6, passes=6, tolerance=1e-2, guess="zeros"), Chunk(tokens=6, passes=3, tolerance=1e-1)],
    "exact": [Chunk(tokens=6, passes=4, tolerance=1e-1, caches="exact"), Chunk(tokens=1, passes=1)],
    "largest": [Chunk(tokens=5, passes=5, tolerance=5e-2, norm="max")],
    "batch": [Chunk(tokens=4, passes=9, tolerance=1e-3, converged="batch")] * 3,
    "advances": [Window(tokens=6, width=3, advances=(1, 2, 1, 2)), Window(tokens=3, width=2, advances=(1, 1, 1))],
}


@pytest.mark.parametrize("name", PLANS)
def test_decode_plans(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    manifest = Bundle.open(tiny_bundle).autoregressive
    tokens = manifest.decoded_tokens()
    plan = DecodePlan(
        blocks=tuple(BlockPlan(block=block, segments=segments(PLANS[name], count)) for block, count in tokens.items())
    )
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    sequential = compare(tiny_bundle, 2, np.array([0, 1]), guidance=1.0, plan="sequential")
    found = compare(tiny_bundle, 2, np.array([0, 1]), guidance=1.0, plan=plan, plan_file=tmp_path / "plan.json")
    assert np.abs(found - sequential).max() > CLOSE, "the plan changed nothing"


def test_window_with_a_tolerance(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "bundle", ExportOptions(batch=1))
    tokens = Bundle.open(tmp_path / "bundle").autoregressive.decoded_tokens()
    window = [Window(tokens=100, width=4, tolerance=2e-1)]
    plan = DecodePlan(blocks=tuple(BlockPlan(block=b, segments=segments(window, n)) for b, n in tokens.items()))
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    compare(tmp_path / "bundle", 2, np.array([0, 1]), guidance=1.0, plan=plan, plan_file=tmp_path / "plan.json")


def test_linear_guidance_labels_and_attention_temperature(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", tarflow_config())
    bundle = tmp_path / "bundle"
    export_checkpoint(tmp_path / "checkpoint", bundle, ExportOptions(batch=2, attention_temperature=True))
    guidance = [Guidance(1.5, annealed=True), Guidance(0.7, scale=False), Guidance(2.0, shift=False)]
    compare(bundle, 3, np.array([0, 1, 1]), guidance=guidance, attention_temperature=1.3)
    compare(bundle, 2, None)


@pytest.mark.parametrize("denoise", ["none", "score", "learned"])
def test_denoisers_features_and_wide_images(denoising_bundle: Path, denoise: str) -> None:
    given = Bundle.open(denoising_bundle).manifest.conditioning
    random = np.random.default_rng(0)
    condition, null = random.normal(size=(2, 3, given.tokens, given.width)).astype(np.float32)
    compare(denoising_bundle, 3, condition, null[0], guidance=2.0, denoise=denoise, denoising_rate=0.8)


def test_features_decoder_and_token_ids(emoji_bundle: Path) -> None:
    opened = Bundle.open(emoji_bundle)
    from tokenizers import Tokenizer

    text = opened.manifest.text
    assert text
    tokenizer = Tokenizer.from_file(str(emoji_bundle / text.tokenizer.path))
    with Sampler.open(emoji_bundle, threads=1) as sampler:
        expected = sampler.encode_captions(["red heart, noto style", ""])
    with CppSampler(emoji_bundle, opened.manifest.model.data_shape, threads=1) as sampler:
        for caption, features in zip(("red heart, noto style", ""), expected, strict=True):
            row = tokenizer.encode(text.template.replace("{caption}", caption))
            found = sampler.encode_tokens(row.ids, row.attention_mask)
            np.testing.assert_allclose(found, features, rtol=0, atol=CLOSE)
    compare(emoji_bundle, 1, expected[:1], expected[1], guidance=1.0, denoise="decoder")


@pytest.mark.parametrize("guidance", [0.0, 1.5, Guidance(2.0, interval=(0.2, 0.7))])
def test_continuous_flows(continuous_bundle: Path, guidance: float | Guidance) -> None:
    compare(continuous_bundle, 3, np.array([0, 1, 2]), guidance=guidance)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
def test_solvers_and_more_passes_than_the_table_holds(continuous_bundle: Path, tmp_path: Path, solver: str) -> None:
    times = [0.0, 0.2, 0.55, 1.0] if solver != "euler" else [index / 300 for index in range(301)]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"solver": solver, "times": times}))
    compare(continuous_bundle, 2, np.array([0, 1]), guidance=1.0, plan=file, plan_file=file)


def test_points(tmp_path: Path) -> None:
    write_velocity(tmp_path / "checkpoint", points_config())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=4))
    compare(tmp_path / "bundle", 6, None)


def test_previews_and_progress_and_cancelling() -> None:
    with Sampler.open(SHIPPED, threads=1) as sampler:
        expected: dict[int, NDArray] = {}
        noise, labels = sampler.noise(2, 1), np.array([4, 5])
        data = sampler.generate(noise, labels, on_block=lambda block, x: expected.update({block: x}))
    with CppSampler(SHIPPED, (1, 28, 28), threads=1) as other:
        found: dict[int, NDArray] = {}
        works: list[tuple[int, int]] = []

        def note(done: int, total: int) -> bool:
            works.append((done, total))
            return True

        other.generate(noise, labels, on_block=lambda block, x: found.update({block: x}), progress=note)
        assert list(found) == list(expected) == [3, 2, 1, 0]
        for block, x in expected.items():
            np.testing.assert_allclose(found[block], x, rtol=0, atol=CLOSE)
        assert works[-1] == (4 * 49, 4 * 49) and len(works) >= 4 * 4
        with pytest.raises(CppError, match="cancelled") as cancelled:
            other.generate(noise, labels, progress=lambda done, total: done < 60)
        assert cancelled.value.status == 4
        np.testing.assert_allclose(other.generate(noise, labels), data, rtol=0, atol=CLOSE)
