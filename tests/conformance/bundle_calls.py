"""Run a recorded call through exported graphs.

Sampling goes through a bundle and the loop, on ONNX Runtime or on the network interpreter; the two denoisers are graphs of
standard operators, which ONNX Runtime runs once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.network.backend import NetworkBackend
from starflow.export.score_graph import DenoiserShape, build_denoiser_graph, build_score_graph
from starflow.export.traced_graph import SharedWeights
from starflow.export.weight_file import WeightFile
from starflow.runtime import Sampler
from starflow.runtime.bundle import Bundle
from starflow.runtime.sampler import Plan
from starflow.training.checkpoint import save_checkpoint
from starflow.training.config import CheckpointConfig
from starflow.training.denoise import LEARNED_STD
from starflow.training.model import FlowModel, build_model
from starflow.training.starflow import Starflow
from tests.conformance.cases import Case
from tests.conformance.torch_calls import (
    attention_temperature,
    call_guidance,
    call_jacobi,
    denoising_rate,
    model_config,
    split_condition,
)


def export_call(case: Case, call: dict[str, Any], weights: dict[str, Any], folder: Path) -> Path:
    """A bundle with the batch and shape of one call; made once for each."""
    noise = case.tensors[call["inputs"]["noise"]]
    shape = (noise.shape[2], noise.shape[3]) if noise.ndim == 4 else None
    y = case.tensors[call["inputs"]["y"]] if "y" in call["inputs"] else None
    tokens = y.shape[1] if y is not None and y.ndim == 3 else None
    # T4 samples before and after an update of its prior: what the weights are is part of what the bundle is.
    prior = f"{float(weights['var'].sum()):.6f}" if "var" in weights else "1"
    bundle = folder / f"{case.name}-{'x'.join(map(str, noise.shape))}-{tokens}-{prior}"
    if not bundle.exists():
        config = CheckpointConfig(model=model_config(case))
        save_checkpoint(folder / "checkpoint", config, weights)
        options = ExportOptions(batch=len(noise), shape=shape, attention_temperature=True, condition_tokens=tokens)
        export_checkpoint(folder / "checkpoint", bundle, options)
    return bundle


def open_sampler(path: Path, route: str, plan: Plan) -> Sampler:
    """A sampler in float32: `portable` and `cpu` are lowerings on ONNX Runtime, `network` is what TensorRT's parser reads."""
    if route != "network":
        return Sampler.open(path, variant=f"{route}-fp32", plan=plan, threads=1)
    bundle = Bundle.open(path)
    variant = bundle.variant("portable-fp32", "portable")
    return Sampler(bundle, variant, NetworkBackend(bundle, variant), plan)


def run_sampling(case: Case, call: dict[str, Any], bundle: Path, route: str) -> dict[str, NDArray]:
    """Outputs of a `reverse` call by their recorded keys."""
    args = call["args"]
    inputs = {argument: case.tensors[name] for argument, name in call["inputs"].items()}
    noise = inputs["noise"]
    y, y_null = split_condition(inputs.get("y"), len(noise))
    if y is not None and y.ndim == 1:
        y = y % case.config["constructor"]["num_classes"]  # the published sampler indexes negative ids from the end
    sequence: dict[str, NDArray] = {}
    blocks = case.config["constructor"]["num_blocks"]

    def keep(block: int, x: NDArray) -> None:
        sequence[f"seq.{blocks - block}"] = x

    with open_sampler(bundle, route, call_jacobi(args) or "sequential") as sampler:
        sample = sampler.generate(
            noise.numpy(),
            None if y is None else y.numpy(),
            None if y_null is None else y_null.numpy(),
            guidance=call_guidance(case, args),
            attention_temperature=attention_temperature(args),
            on_block=keep,
        )
        if case.config["family"] == "tarflow":
            from starflow.runtime.tokens import unpatchify

            sequence["seq.0"] = unpatchify(np.asarray(noise), sampler.bundle.autoregressive.model)
    return sequence | {"sample": sample}


def export_denoiser(case: Case, call: dict[str, Any], model: FlowModel, folder: Path) -> Path:
    """The graph of a `score_denoise` or `denoiser` call; made once for each shape."""
    x, y = case.tensors[call["inputs"]["x"]], case.tensors.get(call["inputs"].get("y", ""))
    shape = DenoiserShape(len(x), x.shape[2], x.shape[3], y.shape[1] if y is not None and y.ndim == 3 else 0)
    folder = folder / f"{case.name}-{call['op']}-{'x'.join(map(str, x.shape))}-{shape.condition_tokens}"
    path = folder / "denoiser.onnx"
    if path.exists():
        return path
    with torch.device("meta"):
        shapes_only = build_model(model.config)
    with WeightFile(folder / "weights.safetensors") as file:
        tensors = {name: value.numpy for name, value in model.state_dict().items()}
        weights = SharedWeights(tensors, file, file.path.name)
        if call["op"] == "score_denoise":
            graph = build_score_graph(shapes_only, shape, weights)
        else:
            assert isinstance(shapes_only, Starflow)
            graph = build_denoiser_graph(shapes_only, shape, weights)
    onnx.save(graph, path)
    onnx.checker.check_model(path, full_check=True)
    return path


def run_denoising(case: Case, call: dict[str, Any], graph: Path) -> dict[str, NDArray]:
    """Outputs of a `score_denoise` or `denoiser` call by their recorded keys."""
    args = call["args"]
    inputs = {argument: case.tensors[name].numpy() for argument, name in call["inputs"].items()}
    x, y = inputs["x"], inputs.get("y")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    given = {"x": x, "condition": y, "label": y}
    (found,) = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
    if call["op"] == "score_denoise":
        step = denoising_rate(args) * args["noise_std"] ** 2
        return {"x_denoised": x + step * found, "grad": -found / x.size}
    step = LEARNED_STD * (args["sigma_curr"] - args["sigma_next"]) / args["sigma_curr"]
    return {"prediction": found, "x_denoised": x - step * found}
