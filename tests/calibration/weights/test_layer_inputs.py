"""What is recorded of a product's inputs, against hooks in the PyTorch model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from starflow.calibration.cases import draw_cases
from starflow.calibration.inverted_data import invert_data
from starflow.calibration.weights.input_scaling import choose_scales, rounded_to_8_bits
from starflow.calibration.weights.layer_inputs import LayerInputs, StepInputs
from starflow.calibration.weights.number_format import INT8
from starflow.calibration.weights.step_graph_weights import StepGraphWeights
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.autoregressive import RecordedTrace, sample_trace
from starflow.training.config import CheckpointConfig
from tests.models import class_config, tarflow_config, unconditional_config, write_checkpoint


def recorded(bundle: Bundle, trace: RecordedTrace, block: int) -> dict[str, LayerInputs]:
    spec = bundle.graph(bundle.variant("cpu-fp32", "cpu"), block)
    weights = StepGraphWeights(bundle.root / spec.file.path)
    recorder = StepInputs(weights, spec, bundle.autoregressive.blocks[block], trace, threads=1)
    return recorder.record(list(weights.linears.values()))


def drawn(bundle: Bundle, images: int = 4) -> RecordedTrace:
    variant = bundle.variant("cpu-fp32", "cpu")
    with OnnxRuntimeBackend(bundle, variant, threads=1) as backend:
        return sample_trace(bundle, variant, backend, draw_cases(bundle, images, 0).calibrate)


@pytest.mark.parametrize("config", [unconditional_config(), tarflow_config()], ids=["starflow", "tarflow"])
def test_inputs_are_those_of_the_model_on_the_same_sample(tmp_path: Path, config: CheckpointConfig) -> None:
    model = write_checkpoint(tmp_path / "c", config)
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(batch=2, guidance=False))
    bundle = Bundle.open(tmp_path / "b")
    seen: dict[str, list[np.ndarray]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, given, __, name=name: seen.setdefault(f"{name}.weight", []).append(given[0].detach().numpy())
            )
    case = draw_cases(bundle, 4, 0).calibrate
    with Sampler.open(bundle.root, variant="cpu-fp32", threads=1) as sampler:
        x = torch.from_numpy(sampler.generate(case.noise, case.condition))
    with torch.no_grad():
        labels = None if case.condition is None else model.encode_labels(torch.from_numpy(case.condition))
        model(x, labels)
    trace = drawn(bundle)
    compared = 0
    for block in bundle.autoregressive.blocks:
        for name, found in recorded(bundle, trace, block.index).items():
            count = block.capacity - block.prefix  # TARFlow's training pass has the last token as an input as well
            given = np.concatenate([each[:, :count].reshape(-1, each.shape[-1]) for each in seen[name]])
            given = given.astype(np.float64)
            expected = given.T @ given / len(given)
            assert np.abs(found.hessian - expected).max() < 1e-3 * np.abs(expected).max(), name
            compared += 1
    assert compared >= 10


def test_recording_in_parts_changes_nothing(wide_bundle: Path) -> None:
    bundle = Bundle.open(wide_bundle)
    trace = drawn(bundle, 8)
    spec = bundle.graph(bundle.variant("cpu-fp32", "cpu"), 1)
    weights = StepGraphWeights(bundle.root / spec.file.path)
    recorder = StepInputs(weights, spec, bundle.autoregressive.blocks[1], trace, threads=1)
    together = recorder.record(list(weights.linears.values()))
    for linear in weights.linears.values():
        alone = recorder.record([linear])[linear.weight]
        assert np.array_equal(alone.hessian, together[linear.weight].hessian)
        assert 8 <= len(alone.vectors) <= 1024


@pytest.mark.parametrize(
    "config", [class_config(), tarflow_config(), unconditional_config()], ids=lambda c: c.model.family
)
def test_data_is_inverted_to_the_noise_it_was_made_from(tmp_path: Path, config: CheckpointConfig) -> None:
    write_checkpoint(tmp_path / "c", config)
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(batch=2))
    bundle = Bundle.open(tmp_path / "b")
    case = draw_cases(bundle, 3, 0, guidance=0.0).calibrate
    with Sampler.open(bundle.root, variant="cpu-fp32", threads=1) as sampler:
        x = sampler.generate(case.noise[:3], None if case.condition is None else case.condition[:3])
    found = invert_data(x, None if case.condition is None else case.condition[:3], threads=1)(bundle)
    variant = bundle.variant("cpu-fp32", "cpu")
    with OnnxRuntimeBackend(bundle, variant, threads=1) as backend:
        expected = sample_trace(bundle, variant, backend, case)
    for block, batches in expected.inputs.items():
        for mine, theirs in zip(found.inputs[block], batches, strict=True):
            kept = slice(0, 2 if theirs is batches[0] else 1)  # the fourth image is the third again
            assert np.abs(mine.noise[kept] - theirs.noise[kept]).max() < 2e-4
            assert (mine.condition is None) == (theirs.condition is None)
            if theirs.condition is not None and mine.condition is not None:
                assert np.array_equal(mine.condition[0], theirs.condition[0])


def test_scales_lower_the_error_of_rounded_activations() -> None:
    """One input is thirty times as large as the others: alone it sets the step for its whole block."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((512, 128)).astype(np.float32)
    x[:, 7] *= 30
    weights = generator.standard_normal((64, 128)).astype(np.float32)
    inputs = LayerInputs(x.T.astype(np.float64) @ x / len(x), x)
    scales = choose_scales([weights], inputs, INT8, 128, rounded_inputs=True)
    assert (np.log2(scales) % 1 == 0).all() and scales[7] >= 2 * np.median(scales)
    exact = x @ weights.T
    plain, scaled = rounded_to_8_bits(x, 128) @ weights.T, rounded_to_8_bits((x / scales).astype(np.float32), 128)
    assert np.linalg.norm(scaled @ (weights * scales).T - exact) < 0.7 * np.linalg.norm(plain - exact)
