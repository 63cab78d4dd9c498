"""Run a recorded call through exported graphs.

Sampling goes through a bundle and the loop, on ONNX Runtime or on the network interpreter; denoising through a bundle and
ONNX Runtime.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.interpreter.backend import NetworkBackend
from starflow.runtime import Sampler
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.sampler import Plan
from starflow.training.autoregressive.denoise import LEARNED_STD
from starflow.training.checkpoint import save_checkpoint
from starflow.training.config import CheckpointConfig
from tests.conformance.cases import Case
from tests.conformance.torch_calls import (
    attention_temperature,
    call_guidance,
    call_jacobi,
    denoising_rate,
    model_config,
    split_condition,
)
from tests.cpp_library import CppSampler


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
        options = ExportOptions(
            lowerings=("portable", "cpu", "cuda"),
            batch=len(noise),
            shape=shape,
            attention_temperature=True,
            condition_tokens=tokens,
        )
        export_checkpoint(folder / "checkpoint", bundle, options)
    return bundle


def open_sampler(path: Path, route: str, plan: Plan) -> Sampler:
    """A sampler in float32: `portable`, `cpu` and `cuda` are lowerings on ONNX Runtime's CPU, `network` is what TensorRT's parser reads."""
    if route != "network":
        return Sampler.open(path, variant=f"{route}-fp32", plan=plan, threads=1)
    bundle = Bundle.open(path)
    variant = bundle.variant("portable-fp32", "portable")
    return Sampler(bundle, variant, NetworkBackend(bundle, variant), plan)


def open_cpp_sampler(path: Path, plan: Any) -> CppSampler:
    """The same in C++, which reads a plan from a file."""
    manifest = Bundle.open(path).autoregressive
    if plan != "sequential":
        file = path.parent / "plan.json"
        file.write_text(plan.plan(manifest.decoded_tokens()).model_dump_json())
        plan = str(file)
    return CppSampler(path, manifest.model.data_shape, variant="cpu-fp32", plan=plan, threads=1)


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

    plan = call_jacobi(args) or "sequential"
    with open_cpp_sampler(bundle, plan) if route == "cpp" else open_sampler(bundle, route, plan) as sampler:
        sample = sampler.generate(
            noise.numpy(),
            None if y is None else y.numpy(),
            None if y_null is None else y_null.numpy(),
            guidance=call_guidance(case, args),
            attention_temperature=attention_temperature(args),
            on_block=keep,
        )
    if case.config["family"] == "tarflow":
        from starflow.runtime.autoregressive.tokens import unpatchify

        sequence["seq.0"] = unpatchify(np.asarray(noise), Bundle.open(bundle).autoregressive.model)
    return sequence | {"sample": sample}


def export_denoiser(case: Case, call: dict[str, Any], weights: dict[str, Any], folder: Path) -> Path:
    """A bundle with the denoiser of a `score_denoise` or `denoiser` call; made once for all calls of the same shapes."""
    x, y = case.tensors[call["inputs"]["x"]], case.tensors.get(call["inputs"].get("y", ""))
    tokens = y.shape[1] if y is not None and y.ndim == 3 else None
    bundle = folder / f"{case.name}-{call['op']}-{'x'.join(map(str, x.shape))}-{tokens}"
    if not bundle.exists():
        save_checkpoint(folder / "checkpoint", CheckpointConfig(model=model_config(case), noise_std=1.0), weights)
        options = ExportOptions(
            batch=len(x),
            shape=(x.shape[2], x.shape[3]),
            condition_tokens=tokens,
            denoisers=("score" if call["op"] == "score_denoise" else "learned",),
        )
        export_checkpoint(folder / "checkpoint", bundle, options)
    return bundle


def run_denoising(case: Case, call: dict[str, Any], bundle: Path) -> dict[str, NDArray]:
    """Outputs of a `score_denoise` or `denoiser` call by their recorded keys."""
    args = call["args"]
    inputs = {argument: case.tensors[name].numpy() for argument, name in call["inputs"].items()}
    x, y = inputs["x"], inputs.get("y")
    if y is not None and y.ndim == 1:
        y = y % case.config["constructor"]["num_classes"]
    opened = Bundle.open(bundle)
    manifest = opened.autoregressive
    model = manifest.model.model_copy(update={"noise_std": args.get("noise_std", 1.0)})  # as this call has it
    opened = Bundle(bundle, manifest.model_copy(update={"model": model}))
    variant = opened.variant("portable-fp32", "portable")
    with Sampler(opened, variant, OnnxRuntimeBackend(opened, variant, threads=1), "sequential") as sampler:
        if call["op"] == "score_denoise":
            whole, denoised = (sampler.denoise(x, y, how="score", rate=rate) for rate in (1.0, denoising_rate(args)))
            return {"x_denoised": denoised, "grad": (x - whole) / args["noise_std"] ** 2 / x.size}
        part = (args["sigma_curr"] - args["sigma_next"]) / args["sigma_curr"]
        whole, denoised = (sampler.denoise(x, y, how="learned", rate=rate) for rate in (1.0, part))
        return {"prediction": (x - whole) / LEARNED_STD, "x_denoised": denoised}
