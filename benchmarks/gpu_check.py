"""Acceptance on a GPU machine: build, verify, measure, compare with PyTorch; one JSON and one Markdown report.

Runs on the digits model that is shipped and on a larger random one. What a step costs is measured on the latter: milliseconds per
token, per cent of memory bandwidth (weights and caches it reads / bandwidth measured beside it), host microseconds per step, kernels
per step, GPU memory. PyTorch's eager sampler and its compiled step (CUDA graphs) run the same weights in float16. A part that
cannot run is reported as such, with the reason; a part that fails makes the exit status 1.

Example: python -m benchmarks.gpu_check out/gpu-check
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from benchmarks.pytorch_comparison import DIGITS, GUIDANCE, TEXT_TOKENS, TEXT_WIDTH, random_model
from benchmarks.static_torch import StaticStep, decode

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.onnxruntime.session import check_provider
from starflow.runtime.backends.tensorrt.backend import TensorrtBackend
from starflow.runtime.backends.tensorrt.flavour import FLAVOUR_NAMES, load_flavour
from starflow.runtime.diagnostics.benchmark import run_benchmark
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.errors import BackendError, StarflowError
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.checkpoint import load_autoregressive, save_checkpoint
from starflow.training.layers.tokens import patchify

LARGE = (2048, 12)  # width, layers: 1.2 GB in float16, far beyond any L2 cache


class UnavailableError(Exception):
    """A part this machine has not got what it takes for."""


@dataclass
class Part:
    """One line of the report; `facts` are its figures."""

    name: str
    outcome: str = "passed"
    seconds: float = 0.0
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Check:
    """Runs the parts one after the other and keeps what came of them."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        print(f"{name} ...", file=sys.stderr, flush=True)
        part = Part(name)
        start = time.perf_counter()
        try:
            part.facts = work()
        except UnavailableError as reason:
            part.outcome, part.reason = "not run", str(reason)
        except (StarflowError, AssertionError, RuntimeError, subprocess.SubprocessError) as error:
            part.outcome, part.reason = "failed", f"{type(error).__name__}: {error}"
        part.seconds = time.perf_counter() - start
        self.parts.append(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where bundles and reports go")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    try:
        gpu = Gpu()
    except StarflowError as error:
        sys.exit(f"gpu_check: {error}")
    target, reason = _target(gpu)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    check = Check()
    digits, large = folder / "digits", folder / "large"
    check.run("export digits", lambda: _export(DIGITS, digits, batch=8))
    check.run("export the larger model", lambda: _export_large(folder, large))
    engines: dict[str, Callable[[], dict[str, Any]]] = {
        "build digits": lambda: _starflow("build", digits, "--target", target, "--force"),
        "build the larger model": lambda: _starflow("build", large, "--target", target, "--force"),
        "verify digits": lambda: _starflow("verify", digits, "--checkpoint", DIGITS, "--backend", "tensorrt"),
        "verify the larger model": lambda: _starflow("verify", large, "--backend", "tensorrt", "--images", "1"),
        "bench digits": lambda: _bench(digits, arguments.repetitions),
        "bench the larger model": lambda: _bench(large, arguments.repetitions),
        "one step of the larger model": lambda: _step(large),
    }
    for name, work in engines.items():
        check.run(name, work if target else lambda: _unavailable(reason))
    check.run("verify digits, CUDA provider", lambda: _verify_on_cuda(digits))
    check.run("bench digits, CUDA provider", lambda: _bench(digits, arguments.repetitions, provider="cuda"))
    check.run("bench the larger model, CUDA provider", lambda: _bench(large, arguments.repetitions, provider="cuda"))
    check.run("PyTorch on the same weights", lambda: _pytorch(folder / "large-checkpoint", arguments.repetitions))
    _write(folder, gpu, target, check.parts)
    sys.exit(any(part.outcome == "failed" for part in check.parts))


def _unavailable(reason: str) -> NoReturn:
    raise UnavailableError(reason)


def _target(gpu: Gpu) -> tuple[str | None, str]:
    """The flavour that is installed and knows this GPU; or None, and why there is none."""
    reasons = []
    for name in FLAVOUR_NAMES:
        try:
            flavour = load_flavour(name)
        except BackendError as error:
            reasons.append(str(error))
            continue
        named = flavour.named_capabilities
        if not named:
            return name, ""
        if gpu.compute_capability in named:
            return f"{name}:{gpu.compute_capability}", ""
        reasons.append(f"{name} does not cover compute capability {gpu.compute_capability}")
    return None, "; ".join(reasons)


def _export(checkpoint: Path, bundle: Path, batch: int) -> dict[str, Any]:
    manifest = export_checkpoint(
        checkpoint, bundle, ExportOptions(precisions=("fp32", "fp16"), batch=batch), replace=True
    )
    return {"variants": [variant.name for variant in manifest.variants]}


def _export_large(folder: Path, bundle: Path) -> dict[str, Any]:
    config, model = random_model(*LARGE)
    save_checkpoint(folder / "large-checkpoint", config, model.state_dict())
    return _export(folder / "large-checkpoint", bundle, batch=1)


def _starflow(*arguments: object) -> dict[str, Any]:
    """Run a command with --json and return what it printed."""
    command = [sys.executable, "-m", "starflow.runtime", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _bench(bundle: Path, repetitions: int, provider: str | None = None) -> dict[str, Any]:
    try:
        sampler = (
            Sampler.open(bundle, variant="portable-fp16", provider="cuda")
            if provider
            else Sampler.open(bundle, backend="tensorrt")
        )
    except BackendError as error:
        if provider:
            raise UnavailableError(str(error)) from None
        raise
    with sampler:
        result = run_benchmark([sampler], guidance=GUIDANCE, repetitions=repetitions)
        timing = result.variants[0]
        return {
            "backend": sampler.backend.name,
            "variant": timing.variant,
            "bandwidth_gigabytes_per_second": result.bandwidth / 1e9,
            "milliseconds_per_token": timing.total.milliseconds,
            "floor_milliseconds": timing.total.floor_milliseconds,
            "memory_bandwidth_percent": timing.total.memory_bandwidth_percent,
            "images_per_second": timing.images_per_second,
        }


def _verify_on_cuda(bundle: Path) -> dict[str, Any]:
    """ONNX Runtime's CUDA provider against PyTorch."""
    try:
        check_provider("cuda")
    except BackendError as error:
        raise UnavailableError(str(error)) from None
    return _starflow("verify", bundle, "--checkpoint", DIGITS, "--backend", "onnxruntime", "--provider", "cuda")


def _step(bundle: Path) -> dict[str, Any]:
    """What one step asks of the host and of the GPU."""
    gpu = Gpu()
    free_before, _ = gpu.memory()
    with Sampler.open(bundle, backend="tensorrt") as sampler:
        used = free_before - gpu.memory()[0]
        backend = sampler.backend
        assert isinstance(backend, TensorrtBackend)
        noise = sampler.noise(sampler.manifest.batch)
        text = np.zeros((TEXT_TOKENS, TEXT_WIDTH), np.float32)
        sampler.generate(noise, text, text, guidance=GUIDANCE)
        runner = backend.block_runner(0)
        steps = 64
        runner.seek(TEXT_TOKENS)  # what is decoded does not matter, and the caches hold numbers from the run before
        start = time.perf_counter()
        runner.advance(steps)
        launched = time.perf_counter() - start
        runner.read()
        return {
            "host_microseconds_per_step": 1e6 * launched / steps,
            "kernels_per_step": runner.kernels_per_step,
            "gpu_memory_bytes": used,
        }


def _pytorch(checkpoint: Path, repetitions: int) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise UnavailableError("this torch has no CUDA")
    _, loaded = load_autoregressive(checkpoint)
    model = loaded.to("cuda", torch.float16)
    block = model.blocks[-1]
    assert isinstance(block, FlowBlock)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(model.noise_shape(1), generator=generator)
    text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    noise, text = noise.to("cuda", torch.float16), text.to("cuda", torch.float16)
    null = torch.zeros_like(text)
    tokens = patchify(noise, model.config.patch_size, channel_first=model.channel_first)
    condition = torch.cat([text, null])
    step = StaticStep(model, block, batch=1, prefix=TEXT_TOKENS, weight=GUIDANCE)
    compiled = torch.compile(step, mode="reduce-overhead")
    ways: dict[str, Callable[[], object]] = {
        "eager": lambda: model.reverse(noise, text, null, guidance=GUIDANCE),
        "static cache, eager": lambda: decode(step, step, tokens, condition),
        "torch.compile with CUDA graphs": lambda: decode(step, compiled, tokens, condition),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            torch.cuda.synchronize()
            if repetition:  # the first one compiles
                seconds[name].append(time.perf_counter() - start)
    return {
        f"milliseconds_per_token, {name}": 1000 * statistics.median(times) / tokens.shape[1]
        for name, times in seconds.items()
    }


def _write(folder: Path, gpu: Gpu, target: str | None, parts: list[Part]) -> None:
    doctor = _starflow("doctor")
    facts = {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "target": target, "doctor": doctor}
    with atomic_file(folder / "report.json") as path:
        path.write_text(json.dumps(facts | {"parts": [asdict(part) for part in parts]}, indent=1) + "\n")
    lines = [
        f"# GPU check on {gpu.name} ({target or 'no TensorRT'})",
        "",
        "| part | outcome | seconds | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {part.name} | {part.outcome} | {part.seconds:.0f} | {part.reason} |" for part in parts]
    for part in parts:
        numbers = {name: value for name, value in part.facts.items() if isinstance(value, int | float | str)}
        if numbers:
            lines += ["", f"## {part.name}", ""]
            lines += [
                f"* {name.replace('_', ' ')}: {value:.4g}"
                if isinstance(value, float)
                else f"* {name.replace('_', ' ')}: {value}"
                for name, value in numbers.items()
            ]
    with atomic_file(folder / "report.md") as path:
        path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
