"""Step graphs through parser and interpreter against ONNX Runtime: every block, over prefill, steps and chunks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.interpreter.backend import NetworkBackend
from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.runtime import Sampler
from starflow.runtime.backends.block_runner import BlockInputs, BlockRunner
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.plans.decode_plan import Jacobi
from tests.export.tensorrt.interpreter.onnx_graphs import parse, run_onnxruntime
from tests.models import tarflow_config, write_checkpoint

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def tarflow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class vectors, learned positions, linear guidance, a temperature: what `tiny_bundle` does not have."""
    folder = tmp_path_factory.mktemp("tarflow")
    write_checkpoint(folder / "checkpoint", tarflow_config())
    options = ExportOptions(batch=2, attention_temperature=True, precisions=("fp32", "fp16", "bf16"))
    export_checkpoint(folder / "checkpoint", folder / "bundle", options)
    return folder / "bundle"


@pytest.fixture(scope="module")
def digits_bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    export_checkpoint(repository / "examples" / "digits" / "checkpoint", folder, ExportOptions(batch=2))
    return folder


def sequence(bundle: Bundle, graph: GraphSpec, seed: int = 0) -> BlockInputs:
    """Random inputs of a block, guidance and temperature included."""
    rng = np.random.default_rng(seed)
    model, specs = bundle.autoregressive.model, {spec.role: spec for spec in graph.inputs}
    block = bundle.autoregressive.blocks[graph.block]
    amounts = {
        "guidance": 1.5,
        "guidance_scale": 1.5,
        "guidance_shift": 1.2,
        "guidance_anneal": 1,
        "inverse_temperature": 0.8,
    }
    classes = rng.integers(0, bundle.manifest.conditioning.num_classes, block.rows)
    return BlockInputs(
        rng.standard_normal((bundle.manifest.batch, model.tokens, model.token_dim)).astype(np.float32),
        np.eye(bundle.manifest.conditioning.width, dtype=np.float32)[classes][:, None] if block.prefix else None,
        classes if "label" in specs else None,
        {
            role: np.full([size for size in specs[role].shape if isinstance(size, int)], amount, np.float32)
            for role, amount in amounts.items()
            if role in specs
        },
    )


def decode(runner: BlockRunner, inputs: BlockInputs, chunk: int, tokens: NDArray | None = None) -> NDArray:
    """The block's tokens [B, positions, D], run in chunks; each run is told the true `tokens` before it, if given."""
    runner.prefill(inputs)
    first = np.zeros_like(inputs.noise[:, :1]) if runner.block.first_token == 0 else inputs.noise[:, :1]
    parts: list[NDArray] = []
    position = runner.tell()
    while position < runner.block.capacity:
        count = min(chunk, runner.block.capacity - position)
        done = position - runner.block.prefix
        known = np.concatenate([first, *parts], axis=1) if tokens is None else np.concatenate([first, tokens], axis=1)
        previous = known[:, done : done + count]
        runner.store("previous", np.pad(previous, ((0, 0), (0, count - previous.shape[1]), (0, 0))), count)
        runner.run(count)
        parts.append(runner.fetch("x", count).copy())
        position += count
        runner.seek(position)
    return np.concatenate(parts, axis=1)


def compare(root: Path, precision: str, rounding: bool, chunk: int) -> float:
    """Largest relative L2 difference of a block's tokens, both runtimes being told the same previous tokens."""
    bundle = Bundle.open(root)
    reference = bundle.variant("portable-fp32", "portable")
    variant = bundle.variant(f"portable-{precision}", "portable")
    worst = 0.0
    with (
        OnnxRuntimeBackend(bundle, reference, threads=1) as onnxruntime,
        NetworkBackend(bundle, variant, rounding=rounding) as network,
    ):
        for graph in reference.graphs:
            inputs = sequence(bundle, graph)
            truth = decode(onnxruntime.block_runner(graph.block), inputs, 1)
            found = decode(network.block_runner(graph.block), inputs, chunk, truth)
            worst = max(worst, float(np.linalg.norm(found - truth) / np.linalg.norm(truth)))
            if precision == "fp32":
                assert np.abs(found - truth).max() <= 1e-5
    return worst


@pytest.mark.parametrize("name", ["tiny_bundle", "tarflow_bundle", "digits_bundle"])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_fp32_follows_onnxruntime(name: str, chunk: int, request: pytest.FixtureRequest) -> None:
    assert compare(request.getfixturevalue(name), "fp32", False, chunk) <= 2e-6


@pytest.mark.parametrize("name", ["tiny_bundle", "tarflow_bundle"])
@pytest.mark.parametrize("chunk", [1, 5])
def test_fp16_rounds_like_16_bits(name: str, chunk: int, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(name)
    exact, rounded = compare(root, "fp16", False, chunk), compare(root, "fp16", True, chunk)
    assert exact < rounded <= 2e-2  # weights alone are rounded, then everything is


def test_bf16_runs(tarflow_bundle: Path) -> None:
    """ONNX Runtime's CPU provider cannot: here the interpreter is the only way to see bf16 numbers without a GPU."""
    assert compare(tarflow_bundle, "fp16", True, 1) < compare(tarflow_bundle, "bf16", True, 1) <= 4e-2


@pytest.mark.parametrize("plan", ["sequential", Jacobi(4, 1e-6, 32)])
def test_whole_samples(tiny_bundle: Path, plan: Jacobi | str, open_network: Callable[..., Sampler]) -> None:
    with Sampler.open(tiny_bundle, variant="portable-fp32", plan=plan, threads=1) as sampler:
        noise = sampler.noise(3, 1)
        expected = sampler.generate(noise, [1, 2, 3], guidance=2.0)
    with open_network(tiny_bundle, "portable-fp32", plan) as sampler:
        for _ in range(2):  # buffers and caches serve the next batch
            assert np.abs(sampler.generate(noise, [1, 2, 3], guidance=2.0) - expected).max() <= 1e-5
    with open_network(tiny_bundle, "portable-fp16", plan, rounding=True) as sampler:
        found = sampler.generate(noise, [1, 2, 3], guidance=2.0)
    assert 1e-5 < np.linalg.norm(found - expected) / np.linalg.norm(expected) <= 2e-2


@pytest.fixture
def open_network() -> Callable[..., Sampler]:
    def open_(root: Path, name: str, plan: Jacobi | str, rounding: bool = False) -> Sampler:
        bundle = Bundle.open(root)
        variant = bundle.variant(name, "portable")
        return Sampler(bundle, variant, NetworkBackend(bundle, variant, rounding=rounding), plan)

    return open_


# The trap: a graph that is right in ONNX Runtime and wrong in TensorRT


def without_mask(graph: Path, folder: Path) -> Path:
    """The same step with the number of valid positions (`nonpad_kv_seqlen`) in place of every attention's mask."""
    shutil.copytree(graph.parent / "weights", folder / "weights")
    model = onnx.load(graph, load_external_data=False)
    nodes = model.graph.node
    for node in nodes:
        if node.op_type == "Attention":
            rows = next(value for value in model.graph.input if value.name == "key.0").type.tensor_type.shape.dim[0]
            node.input[:] = [*node.input[:3], "", "", "", "valid"]
    # The number of valid positions is that of the first token and the number of tokens.
    index = next(index for index, node in enumerate(nodes) if node.op_type == "Shape" and node.input[0] == "previous")
    nodes.insert(index + 1, helper.make_node("Add", ["position", nodes[index].output[0]], ["length"], name="length"))
    nodes.insert(index + 2, helper.make_node("Expand", ["length", "rows"], ["valid"], name="valid"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([rows.dim_value]), "rows"))
    onnx.save(model, folder / graph.name)
    return folder / graph.name


def test_an_ignored_sequence_length_is_caught(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    block = bundle.autoregressive.blocks[-1].index
    graph = bundle.graph(bundle.variant("portable-fp32", "portable"), block)
    masked = tiny_bundle / graph.file.path
    trapped = without_mask(masked, tmp_path)

    rng = np.random.default_rng(0)
    shapes = {spec.name: [1 if size == "S" else int(size) for size in spec.shape] for spec in graph.inputs}
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs["position"] = np.array([5])

    def interpreted(path: Path) -> NDArray:
        return NetworkInterpreter(parse(path)).run({name: value.copy() for name, value in inputs.items()})["x"]

    truth = run_onnxruntime(masked, inputs)["x"]
    np.testing.assert_allclose(run_onnxruntime(trapped, inputs)["x"], truth, atol=1e-5)  # the step is the same one
    assert np.abs(interpreted(masked) - truth).max() <= 1e-5
    assert np.abs(interpreted(trapped) - truth).max() > 0.05
