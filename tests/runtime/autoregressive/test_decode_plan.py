"""Chunks and windows against sequential decoding, which they must reach however they start and stop."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import DecodePlan, Jacobi, Sampler
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
from starflow.runtime.backends.block_runner import BlockRunner
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, Iterated, Segment, Steps, Window
from starflow.training.checkpoint import save_checkpoint
from starflow.training.families import build_flow
from tests.models import class_config, contextless, randomise

TOKENS = 16
LABELS = [8, 9]


@pytest.fixture(scope="module")
def sampler(tiny_bundle: Path) -> Iterator[Sampler]:
    with Sampler.open(tiny_bundle, variant="cpu-fp32", threads=1) as opened:
        yield opened


def everywhere(*segments: Segment) -> DecodePlan:
    return DecodePlan(blocks=tuple(BlockPlan(block=block, segments=segments) for block in (1, 0)))


def in_chunks(size: int, **changes: object) -> DecodePlan:
    starts = range(0, TOKENS, size)
    return everywhere(*(Chunk.model_validate({"tokens": min(size, TOKENS - s)} | changes) for s in starts))


def generate(
    sampler: Sampler, plan: DecodePlan, noise: NDArray | None = None, labels: Sequence[int] = LABELS
) -> NDArray:
    sampler.plan = plan
    return sampler.generate(sampler.noise(2, seed=2) if noise is None else noise, labels, guidance=1.0)


def passes(sampler: Sampler, plan: DecodePlan) -> int:
    counts: list[int] = []
    sampler.plan = plan
    sampler.generate(sampler.noise(2, seed=2), LABELS, guidance=1.0, on_passes=lambda _, count: counts.append(count))
    return sum(counts)


@pytest.mark.parametrize("caches", ["reference", "exact"])
@pytest.mark.parametrize("guess", ["noise", "previous", "zeros"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 16])
def test_as_many_passes_as_tokens_are_the_sequential_answer(
    sampler: Sampler, size: int, guess: str, caches: str
) -> None:
    expected = generate(sampler, SEQUENTIAL)
    fixed = in_chunks(size, passes=size, guess=guess, caches=caches)
    np.testing.assert_allclose(generate(sampler, fixed), expected, atol=2e-5)
    adaptive = in_chunks(size, passes=size, tolerance=0.0, guess=guess, caches=caches)
    np.testing.assert_array_equal(generate(sampler, adaptive), generate(sampler, fixed))
    if size > 1:
        short = generate(sampler, in_chunks(size, passes=1, guess=guess, caches=caches))
        assert np.abs(short - expected).max() > 1e-2


@pytest.mark.parametrize("guess", ["noise", "previous", "zeros"])
@pytest.mark.parametrize("width", [2, 5, 16, 40])
def test_windows_that_wait_for_every_token_are_the_sequential_answer(sampler: Sampler, width: int, guess: str) -> None:
    expected = generate(sampler, SEQUENTIAL)
    window = Window.model_validate({"tokens": TOKENS, "width": width, "advances": (1,) * TOKENS, "guess": guess})
    np.testing.assert_allclose(generate(sampler, everywhere(window)), expected, atol=2e-5)
    assert passes(sampler, everywhere(window)) == 2 * TOKENS


def test_a_window_with_a_tolerance_saves_passes_within_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "b1", ExportOptions(batch=1))
    counts, errors = [], []
    with Sampler.open(tmp_path / "b1", variant="cpu-fp32", threads=1) as single:
        noise = single.noise(1, seed=3)
        expected = generate(single, SEQUENTIAL, noise, [4])
        for tolerance in (0.0, 1e-4, 1e-2):
            plan = everywhere(Steps(tokens=3), Window(tokens=13, width=8, tolerance=tolerance))
            found = generate(single, plan, noise, [4])
            counts.append(_count(single, plan, noise))
            errors.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    assert errors[0] < 1e-5 and errors[1] < 1e-2
    assert counts[0] == 2 * TOKENS and counts[0] > counts[1] > counts[2]


def _count(sampler: Sampler, plan: DecodePlan, noise: NDArray) -> int:
    counts: list[int] = []
    sampler.plan = plan
    sampler.generate(noise, [4], guidance=1.0, on_passes=lambda _, count: counts.append(count))
    return sum(counts)


@pytest.mark.parametrize("caches", ["reference", "exact"])
@pytest.mark.parametrize("norm", ["mean-square", "max"])
def test_an_image_does_not_depend_on_its_neighbour(sampler: Sampler, caches: str, norm: str) -> None:
    """Beside a neighbour of wild noise that never settles, an image is what it is beside its own copy."""
    noise = sampler.noise(2, seed=7)
    calm, wild = np.stack([noise[0], noise[0]]), np.stack([noise[0], 30 * noise[1]])
    plan = in_chunks(8, passes=8, tolerance=1e-2, caches=caches, norm=norm)
    alone, beside = generate(sampler, plan, calm, [4, 4]), generate(sampler, plan, wild, [4, 5])
    np.testing.assert_array_equal(alone[0], alone[1])
    np.testing.assert_allclose(beside[0], alone[0], atol=1e-6)
    together = in_chunks(8, passes=8, tolerance=1e-2, caches=caches, norm=norm, converged="batch")
    coupled = generate(sampler, together, wild, [4, 5])
    assert np.abs(coupled[0] - alone[0]).max() > 1e-5, "the wild neighbour gave it more passes"


def decoded_keys(sampler: Sampler, plan: DecodePlan) -> tuple[list[NDArray], list[NDArray]]:
    """Keys of the deep block as decoding leaves them, and as its accepted tokens make them."""
    generate(sampler, plan)
    runner = sampler.backend.block_runner(1)
    assert isinstance(runner, BlockRunner)
    names = [spec.name for spec in runner.graph.inputs if spec.role == "cache"]
    left = [runner.fetch(name).copy() for name in names]
    tokens = runner.read()
    runner.run_on(1, np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1))
    return left, [runner.fetch(name).copy() for name in names]


@pytest.mark.parametrize("tolerance", [None, 1e-2], ids=["fixed", "adaptive"])
def test_exact_caches_hold_the_keys_of_the_accepted_tokens(sampler: Sampler, tolerance: float | None) -> None:
    """Also where one image was accepted passes before the other."""
    for caches in ("exact", "reference"):
        left, right = decoded_keys(sampler, in_chunks(8, passes=5, tolerance=tolerance, caches=caches))
        difference = max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
        assert difference < 1e-5 if caches == "exact" else difference > 1e-4


def test_the_exact_pass_is_left_out_where_it_would_change_nothing(sampler: Sampler, tmp_path: Path) -> None:
    assert passes(sampler, in_chunks(4, passes=4, caches="exact")) == 2 * 16
    assert passes(sampler, in_chunks(4, passes=3, caches="exact")) == 2 * 16
    assert passes(sampler, in_chunks(4, passes=3)) == 2 * 12
    config = class_config()
    save_checkpoint(tmp_path / "c", config, contextless(randomise(build_flow(config.model))).state_dict())
    export_checkpoint(tmp_path / "c", tmp_path / "bundle", ExportOptions(batch=2))
    settled = {"passes": 8, "tolerance": 1e-30, "caches": "exact"}  # the second pass changes nothing at all
    with Sampler.open(tmp_path / "bundle", variant="cpu-fp32", threads=1) as independent:
        assert passes(independent, in_chunks(8, **settled)) == 2 * 2 * 2


def test_what_is_fixed_goes_through_one_call_that_a_device_can_replace(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[tuple[int, int], ...]] = []
    original = BlockRunner.run_schedule

    def watched(
        self: BlockRunner, start: int, first: NDArray, tokens: NDArray, schedule: Sequence[tuple[int, int]]
    ) -> None:
        called.append(tuple(schedule))
        original(self, start, first, tokens, schedule)

    monkeypatch.setattr(BlockRunner, "run_schedule", watched)
    segments: tuple[Iterated, ...] = (Chunk(tokens=6, passes=2), Window(tokens=10, width=4, advances=(1, 3, 2, 4)))
    generate(sampler, everywhere(*segments))
    assert called == 2 * [((0, 6), (0, 6)), ((0, 4), (1, 4), (4, 4), (6, 4))]


def test_jacobi_is_a_plan_of_chunks(sampler: Sampler) -> None:
    plan = Jacobi(6, threshold=1e-2, max_iterations=5).plan(sampler.bundle.autoregressive.decoded_tokens())
    assert plan == in_chunks(6, passes=5, tolerance=1e-2, converged="batch").model_copy(
        update={"blocks": tuple(reversed(in_chunks(6, passes=5, tolerance=1e-2, converged="batch").blocks))}
    )


@pytest.mark.parametrize(
    "plan", [in_chunks(8, passes=8, tolerance=1e-3), everywhere(Window(tokens=16, width=4, advances=(1,) * 16))]
)
def test_a_value_that_is_not_finite_is_reported(sampler: Sampler, plan: DecodePlan) -> None:
    from starflow.runtime.plain.errors import BackendError

    noise = sampler.noise(2, seed=2)
    noise[1] = 1e38
    with pytest.raises(BackendError, match="NaN or infinity"), np.errstate(all="ignore"):
        generate(sampler, plan, noise)
    assert np.isfinite(generate(sampler, plan)).all()
