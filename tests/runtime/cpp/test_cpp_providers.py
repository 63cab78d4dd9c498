"""ONNX Runtime's execution providers in C++: real ones that are missing here, and a simulated one with memory of its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plans.decode_plan import BlockPlan, DecodePlan
from tests.cpp_library import REPOSITORY, CppError, CppSampler
from tests.models import class_config, write_checkpoint
from tests.runtime.cpp.simulated_library import SimulatedSampler
from tests.runtime.cpp.test_cpp_sampling import PLANS, segments

pytestmark = pytest.mark.usefixtures("cpp_folder")

SHIPPED = REPOSITORY / "runtime/shipped/digits"
BACKEND, USAGE = 3, 1  # statuses


@pytest.mark.parametrize(
    ("provider", "status", "says"),
    [
        ("cuda", BACKEND, r"ONNX Runtime 1\.\S+ was built without CUDAExecutionProvider; name the library"),
        ("tensorrt", BACKEND, "was built without TensorrtExecutionProvider"),
        ("abacus", USAGE, "provider abacus is not known; choose cpu, cuda or tensorrt"),
    ],
)
def test_a_provider_that_is_missing_is_no_reason_to_take_another(provider: str, status: int, says: str) -> None:
    with pytest.raises(CppError, match=says) as refused:
        CppSampler(SHIPPED, (1, 28, 28), provider=provider)
    assert refused.value.status == status and "\n" not in str(refused.value)


@pytest.mark.parametrize("plan", ["sequential", "passes", "exact"])
def test_memory_of_a_device(denoising_bundle: Path, tmp_path: Path, plan: str) -> None:
    """Caches, chunks, prefill and a network beside the flow, with every buffer where the provider has it."""
    opened = Bundle.open(denoising_bundle)
    given, shape = opened.manifest.conditioning, opened.manifest.model.data_shape
    condition, null = np.random.default_rng(0).normal(size=(2, 3, given.tokens, given.width)).astype(np.float32)
    if plan in PLANS:
        tokens = opened.autoregressive.decoded_tokens()
        blocks = tuple(BlockPlan(block=b, segments=segments(PLANS[plan], size)) for b, size in tokens.items())
        (tmp_path / "plan.json").write_text(DecodePlan(blocks=blocks).model_dump_json())
        plan = str(tmp_path / "plan.json")
    found = []
    for how in ({"provider": "cpu", "variant": "portable-fp32", "threads": 1}, {"provider": "cuda", "threads": 1}):
        with SimulatedSampler(denoising_bundle, shape, plan=plan, **how) as sampler:
            noise = sampler.noise(3, 5)
            found.append(sampler.generate(noise, condition, null[:1], guidance=2.0, denoise="score"))
            np.testing.assert_array_equal(
                sampler.generate(noise, condition, null[:1], guidance=2.0, denoise="score"), found[-1]
            )
    np.testing.assert_array_equal(found[0], found[1])
    with pytest.raises(CppError, match="runs on the CPU only; provider cuda needs a portable variant") as refused:
        SimulatedSampler(denoising_bundle, shape, provider="cuda", variant="cpu-fp32")
    assert refused.value.status == USAGE


def test_a_velocity_graph_in_memory_of_a_device(continuous_bundle: Path, tmp_path: Path) -> None:
    shape = Bundle.open(continuous_bundle).manifest.model.data_shape
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"solver": "heun", "times": [index / 150 for index in range(151)]}))
    found = []
    for how in ({"provider": "cpu", "variant": "portable-fp32", "threads": 1}, {"provider": "cuda", "threads": 1}):
        with SimulatedSampler(continuous_bundle, shape, plan=str(plan), **how) as sampler:
            found.append(sampler.generate(sampler.noise(2, 5), np.array([0, 1]), guidance=1.5))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_variant_for_cuda_runs_from_python_only(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", class_config(channels=64))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(lowerings=("cpu", "cuda")))
    shape = Bundle.open(tmp_path / "bundle").manifest.model.data_shape
    with pytest.raises(CppError, match="variant cuda-fp32 runs from Python only") as refused:
        CppSampler(tmp_path / "bundle", shape, variant="cuda-fp32")
    assert refused.value.status == USAGE
