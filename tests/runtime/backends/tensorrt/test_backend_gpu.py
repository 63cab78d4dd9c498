"""The native TensorRT loop on real hardware, with the TensorRT that is installed."""

from pathlib import Path

import numpy as np
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.build import build_bundle
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.tensorrt.backend import open_tensorrt
from starflow.runtime.backends.tensorrt.flavour import FLAVOUR_NAMES, load_flavour
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.runtime.sampler import Plan
from tests.simulated_device.sampling import FP16, generate, onnxruntime, relative_error

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def built_digits(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The digits model with fp16 engines for the GPU of this machine."""
    root = tmp_path_factory.mktemp("digits") / "bundle"
    checkpoint = repository / "examples" / "digits" / "checkpoint"
    export_checkpoint(checkpoint, root, ExportOptions(precisions=("fp16",), batch=2))
    bundle = Bundle.open(root)
    build_bundle(bundle, parse_target(target_here()))
    return bundle


def target_here() -> str:
    capability = Gpu().compute_capability
    for name in FLAVOUR_NAMES:
        try:
            named = load_flavour(name).named_capabilities
        except BackendError:
            continue
        if not named or capability in named:
            return f"{name}:{capability}" if named else name
    pytest.skip(f"no installed TensorRT builds for compute capability {capability}")


@pytest.mark.parametrize("plan", ["auto", Jacobi(8, threshold=0.0, max_iterations=8)])
def test_it_samples_what_onnxruntime_samples(built_digits: Bundle, plan: Plan) -> None:
    found = generate(built_digits, open_tensorrt(built_digits), plan=plan)
    assert relative_error(found, generate(built_digits, onnxruntime(built_digits), plan=plan)) <= FP16


def test_it_repeats_itself_and_gives_memory_back(built_digits: Bundle) -> None:
    gpu = Gpu()
    first = generate(built_digits, open_tensorrt(built_digits))
    free = gpu.memory()[0]
    for _ in range(3):
        np.testing.assert_array_equal(generate(built_digits, open_tensorrt(built_digits)), first)
    assert gpu.memory()[0] >= free - (1 << 20)
