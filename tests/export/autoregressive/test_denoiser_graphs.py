"""Graphs of the denoisers on ONNX Runtime against PyTorch, and what they hold."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import optimize
from safetensors.numpy import load_file

from starflow.export.autoregressive.denoiser_graphs import DenoiserShape, trace_denoiser
from starflow.export.onnx_graph.shared_weights import SharedWeights
from starflow.export.onnx_graph.traced_graph import TracedGraph
from starflow.export.onnx_graph.weight_file import WeightFile
from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import DenoiserKind
from starflow.training.autoregressive.config import AutoregressiveConfig
from starflow.training.autoregressive.denoise import score
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow
from starflow.training.config import ModelConfig
from starflow.training.families import build_flow
from tests.models import randomise, tarflow_config, unconditional_config

CONFIGS: dict[str, ModelConfig] = {"unconditional": unconditional_config().model, "tarflow": tarflow_config().model}
SHAPES = {"unconditional": DenoiserShape(2, 4, 12), "tarflow": DenoiserShape(2, 8, 8)}
NAMES = ["text", *CONFIGS]  # that with text comes from a bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("denoisers")


@cache
def traced(config: AutoregressiveConfig, kind: DenoiserKind, shape: DenoiserShape) -> TracedGraph:
    """Traced on the meta device, as an export does it, and once: it knows no weights."""
    with torch.device("meta"):
        model = build_flow(config)
    return trace_denoiser(model, kind, shape)


def write(
    model: AutoregressiveFlow, path: Path, shape: DenoiserShape, kind: DenoiserKind = "score", dtype: type = np.float32
) -> Path:
    """A graph beside its weights of some type."""
    tensors = {name: partial(value.numpy().astype, dtype) for name, value in model.state_dict().items()}
    with WeightFile(path.with_suffix(".safetensors")) as file:
        graph = traced(model.config, kind, shape).over(SharedWeights(tensors, file, file.path.name))
    onnx.save(graph, path)
    onnx.checker.check_model(path, full_check=True)
    return path


def run(path: Path, **inputs: NDArray) -> NDArray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == inputs.keys()
    (found,) = session.run(None, inputs)
    return found


def exported(bundle: Path, kind: DenoiserKind) -> Path:
    """The float32 graph of a denoiser in a bundle."""
    manifest = Bundle.open(bundle).manifest
    (path,) = (spec.network.file.path for spec in manifest.denoisers if (spec.kind, spec.precision) == (kind, "fp32"))
    return bundle / path


def read_weights(path: Path) -> dict[str, NDArray]:
    """The weights that a graph refers to, by name."""
    graph = onnx.load(path).graph
    referred = {
        tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer if tensor.external_data
    }
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in referred}


@pytest.fixture(scope="module")
def models(denoising_model: tuple[Path, AutoregressiveFlow]) -> dict[str, AutoregressiveFlow]:
    return {"text": denoising_model[1]} | {name: randomise(build_flow(config)) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def graphs(folder: Path, models: dict[str, AutoregressiveFlow], denoising_bundle: Path) -> dict[str, Path]:
    """The score of every model, STARFlow's over images that are wider than high."""
    written = {name: write(models[name], folder / f"{name}.onnx", shape) for name, shape in SHAPES.items()}
    return {"text": exported(denoising_bundle, "score")} | written


def data(height: int, width: int) -> NDArray:
    return np.random.default_rng(0).standard_normal((2, 1, height, width), np.float32)


TEXT = np.random.default_rng(1).standard_normal((2, 5, 6), np.float32)


@pytest.mark.parametrize("name", ["text", "unconditional"])
def test_the_score_of_starflow(name: str, models: dict[str, AutoregressiveFlow], graphs: dict[str, Path]) -> None:
    given = {"x": data(4, 12)} | ({"condition": TEXT} if name == "text" else {})
    expected = score(models[name], *map(torch.from_numpy, given.values())).numpy()
    np.testing.assert_allclose(run(graphs[name], **given), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_the_score_of_tarflow_drops_the_null_class(
    models: dict[str, AutoregressiveFlow], graphs: dict[str, Path]
) -> None:
    x = data(8, 8)
    expected = score(models["tarflow"], torch.from_numpy(x), torch.tensor([2, -1])).numpy()
    for null in (3, -1):  # the number of classes, as bundles have it; a negative id, as the published code has it
        found = run(graphs["tarflow"], x=x, label=np.array([2, null]))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    other = run(graphs["tarflow"], x=x, label=np.array([1, 3]))
    assert np.abs(other[0] - expected[0]).max() > 1e-3
    np.testing.assert_array_equal(other[1], found[1])


def test_the_learned_denoiser(denoising_bundle: Path, models: dict[str, AutoregressiveFlow]) -> None:
    model, x = models["text"], data(4, 12)
    assert isinstance(model, Starflow)
    path = exported(denoising_bundle, "learned")
    with torch.no_grad():
        expected = model.denoiser_prediction(torch.from_numpy(x), torch.from_numpy(TEXT)).numpy()
    np.testing.assert_allclose(run(path, x=x, condition=TEXT), expected, rtol=1e-5, atol=1e-5)
    assert {name.partition(".")[0] for name in read_weights(path)} == {"learnable_self_denoiser"}


def test_smaller_weights_are_widened(folder: Path) -> None:
    model = randomise(build_flow(CONFIGS["tarflow"]))
    path = write(model, folder / "half.onnx", DenoiserShape(2, 8, 8), dtype=np.float16)
    model.half().float()
    x, label = data(8, 8), np.array([2, 0])
    expected = score(model, torch.from_numpy(x), torch.from_numpy(label)).numpy()
    np.testing.assert_allclose(run(path, x=x, label=label), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_stored_once_and_as_the_checkpoint_has_them(
    name: str, models: dict[str, AutoregressiveFlow], graphs: dict[str, Path]
) -> None:
    state = models[name].state_dict()
    stored = read_weights(graphs[name])
    # TARFlow's prior is no part of the published loss, nor is the learned denoiser.
    assert stored.keys() == {key for key in state if key.startswith("blocks.")}
    for key, value in stored.items():
        np.testing.assert_array_equal(value, state[key].numpy())
    if name in CONFIGS:  # a bundle's file has the weights of its other graphs as well
        file = load_file(graphs[name].with_suffix(".safetensors"))
        assert {key for key in file if "_padding" not in key} == stored.keys()
    inside = onnx.load(graphs[name], load_external_data=False).graph.initializer
    largest = max(int(np.prod(tensor.dims)) for tensor in inside if not tensor.external_data)
    assert largest <= (12 + 5) ** 2  # a causal mask; no copy of a weight


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_has_standard_operators_that_tensorrt_reads(name: str, graphs: dict[str, Path]) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = onnx.load(graphs[name], load_external_data=False)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 24)]
    assert parse_graph(load_flavour("tensorrt-rtx"), graphs[name]).network.num_layers > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_left_to_simplify(name: str) -> None:
    """All the rules of ONNX Script find no more than the few that are applied."""
    graph = traced(CONFIGS[name], "score", SHAPES[name]).exported
    assert len(optimize(graph).graph.node) == len(graph.graph.node)
