"""The stages of the check, in the order they run."""

import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from benchmarks.gpu_check.our_step import OurStep
from benchmarks.gpu_check.pytorch_step import CapturedStep
from benchmarks.gpu_check.stage import Facts, Setting, Stage, UnavailableError, starflow
from benchmarks.pytorch_comparison import DIGITS, GUIDANCE, TEXT_TOKENS, TEXT_WIDTH, random_model

from starflow.calibration.weights.plain_rounding import round_plainly
from starflow.export.activations import ActivationData
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.backends.cuda.bandwidth import CudaBandwidthProbe
from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.onnxruntime.cuda_backend import SLOWER_ATTENTION
from starflow.runtime.backends.onnxruntime.session import check_provider
from starflow.runtime.backends.tensorrt.flavour import FLAVOUR_NAMES, load_flavour
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Lowering
from starflow.runtime.diagnostics.take_turns import Lap, take_turns
from starflow.runtime.plain.errors import BackendError, DataError, StarflowError, UsageError
from starflow.training.checkpoint import load_autoregressive, save_checkpoint
from starflow.training.commands.init import PACKAGED_ENCODER
from starflow.training.layers.tokens import patchify
from starflow.training.text.text_encoder import encoder_folder, load_tokenizer

EMOJI = DIGITS.parent.parent / "emoji" / "checkpoint"
CONTINUOUS = DIGITS.parent.parent / "digits-cfm" / "checkpoint"
BATCHES = (1, 16, 64)
EVERY_LOWERING: tuple[Lowering, ...] = ("portable", "cpu", "cuda")


def machine(setting: Setting) -> Facts:
    """What is there, and how fast its memory is."""
    gpu = Gpu()
    free, total = gpu.memory()
    facts = {
        "gpu": gpu.name,
        "compute capability": gpu.compute_capability,
        "memory GB": total / 1e9,
        "free GB": free / 1e9,
    }
    return facts | {"bandwidth GB/s": _bandwidth(gpu) / 1e9, "torch": torch.__version__, "doctor": starflow("doctor")}


def export(setting: Setting) -> Facts:
    """Bundles of the models, with every lowering."""
    export_checkpoint(DIGITS, setting.digits, _small(), replace=True)
    config, model = random_model(*setting.large)
    save_checkpoint(setting.large_checkpoint, config, model.half().state_dict())
    generator = torch.Generator().manual_seed(0)
    data = ActivationData(
        torch.randn(1, 16, 16, 16, generator=generator), torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    )
    large = ExportOptions(precisions=("fp16",), lowerings=EVERY_LOWERING, batch=BATCHES, activations=data)
    manifest = export_checkpoint(setting.large_checkpoint, setting.large_bundle, large, replace=True)
    round_plainly(Bundle.open(setting.large_bundle), "int8", ("cuda",))
    return {"variants": ", ".join(variant.name for variant in manifest.variants)}


def _small() -> ExportOptions:
    return ExportOptions(
        precisions=("fp32", "fp16"), lowerings=EVERY_LOWERING, batch=(1, 8), text_encoder="none", autoencoder="none"
    )


def verify_digits(setting: Setting) -> Facts:
    """ONNX Runtime on CUDA against PyTorch, digits."""
    return _verified(setting.digits, "--checkpoint", DIGITS)


def emoji(setting: Setting) -> Facts:
    """ONNX Runtime on CUDA against the CPU, emoji from captions.

    Without a text encoder `verify` draws random features. This model never saw such, and what rounding changes grows a
    hundred thousand times from its first token to the last (docs/verification.md).
    """
    try:
        load_tokenizer(encoder_folder(PACKAGED_ENCODER))
    except (DataError, UsageError) as error:
        raise UnavailableError(str(error)) from None
    export_checkpoint(EMOJI, setting.emoji, replace(_small(), text_encoder=PACKAGED_ENCODER), replace=True)
    return _verified(setting.emoji)


def continuous(setting: Setting) -> Facts:
    """ONNX Runtime on CUDA against PyTorch, a continuous flow of digits."""
    export_checkpoint(CONTINUOUS, setting.continuous, ExportOptions(precisions=("fp32", "fp16"), batch=8), replace=True)
    return _verified(setting.continuous, "--checkpoint", CONTINUOUS)


def verify_large(setting: Setting) -> Facts:
    """ONNX Runtime on CUDA against the CPU, the larger model."""
    return _verified(setting.large_bundle, "--variant", "portable-fp16", "cuda-fp16", "cuda-int8", "--images", 1)


def steps(setting: Setting) -> Facts:
    """A token of the larger model at batch 1: ours and PyTorch's take turns."""
    return _compare(setting, 1, ("portable-fp16", "cuda-fp16", "cuda-int8"), ("default", "max-autotune-no-cudagraphs"))


def batches(setting: Setting) -> Facts:
    """Larger batches."""
    rows: list[dict[str, Any]] = []
    for batch in BATCHES[1:]:
        rows += _compare(setting, batch, ("portable-fp16", "cuda-fp16", "cuda-int8"), ())["steps"]
    return {"steps": rows}


def xqa(setting: Setting) -> Facts:
    """The cuda lowering with ONNX Runtime's XQA kernel in place of flash attention."""
    os.environ[SLOWER_ATTENTION] = "1"
    return _compare(setting, 1, ("cuda-fp16",), ())


def kernels(setting: Setting) -> Facts:
    """Where the time of a step goes."""
    return {name: _profile(setting, name) for name in ("cuda-fp16", "portable-fp16", "cuda-int8")}


def tensorrt(setting: Setting) -> Facts:
    """Engines: build, verify, and a token."""
    target = _target(Gpu())
    build = starflow("build", setting.digits, "--target", target, "--force")
    starflow("build", setting.large_bundle, "--target", target, "--force")
    facts = {"target": target, "build": build, "verify": _verify(setting.digits, "tensorrt", "--checkpoint", DIGITS)}
    with ExitStack() as stack:
        ours = OurStep(setting.large_bundle, "tensorrt", None, 1)
        stack.enter_context(ours.sampler)
        times = take_turns([lambda lap: ours.decode()], setting.repetitions)
        return facts | {"steps": [_row("tensorrt", times[0].milliseconds, ours, _bandwidth(Gpu()))]}


def _target(gpu: Gpu) -> str:
    """The TensorRT that is installed and knows this GPU."""
    reasons = []
    for name in FLAVOUR_NAMES:
        try:
            named = load_flavour(name).named_capabilities
        except BackendError as error:
            reasons.append(str(error))
            continue
        if not named or gpu.compute_capability in named:
            return f"{name}:{gpu.compute_capability}" if named else name
        reasons.append(f"{name} does not cover compute capability {gpu.compute_capability}")
    raise UnavailableError("; ".join(reasons))


def _bandwidth(gpu: Gpu) -> float:
    """Bytes a second that a copy within the GPU's memory reads and writes."""
    with CudaBandwidthProbe(gpu) as probe:
        return probe.measure()


def _verified(bundle: object, *options: object) -> Facts:
    try:
        check_provider("cuda")
    except BackendError as error:
        raise UnavailableError(str(error)) from None
    return _verify(bundle, "onnxruntime", "--provider", "cuda", *options)


def _verify(bundle: object, backend: str, *options: object) -> Facts:
    found = starflow("verify", bundle, "--backend", backend, *options, statuses=(0, 1))
    columns = ("route", "kind", "block", "largest", "relative", "tolerance", "passed")
    rows = [{name: row[name] for name in columns} for row in found["measurements"]]
    return {"failed": not found["passed"], "checks": rows, "failures": found["failures"], "not run": found["not_run"]}


def _compare(setting: Setting, batch: int, variants: tuple[str, ...], modes: tuple[str, ...]) -> Facts:
    """Times of a token, a row for each way to compute it."""
    bandwidth = _bandwidth(Gpu())
    with ExitStack() as stack:
        ours, failed = {}, []
        for name in variants:
            try:
                ours[name] = OurStep(setting.large_bundle, "onnxruntime", name, batch)
                stack.enter_context(ours[name].sampler)
            except StarflowError as error:
                failed.append({"what": name, "failed": str(error)[:200]})
        theirs = _compiled(setting, batch, modes)
        ways: list[Callable[[], object]] = [
            *(each.decode for each in ours.values()),
            *(each.decode for each in theirs.values()),
        ]
        times = take_turns([partial(_run, way) for way in ways], setting.repetitions)
        rows = [
            _row(name, timed.milliseconds, each, bandwidth)
            for (name, each), timed in zip(ours.items(), times, strict=False)
        ]
        for name, timed in zip(theirs, times[len(ours) :], strict=True):
            rows.append({"what": f"PyTorch {name}", "ms a token": timed.milliseconds / theirs[name].tokens})
    rows += failed
    return {
        "failed": bool(failed),
        "bandwidth GB/s": bandwidth / 1e9,
        "steps": [{"batch": batch} | row for row in rows],
    }


def _compiled(setting: Setting, batch: int, modes: tuple[str, ...]) -> dict[str, CapturedStep]:
    """PyTorch's steps, in both types of 16 bits."""
    if not modes or not torch.cuda.is_available():
        return {}
    _, model = load_autoregressive(setting.large_checkpoint)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(model.noise_shape(batch), generator=generator)
    tokens = patchify(noise, model.config.patch_size, channel_first=model.channel_first)
    condition = torch.randn(2 * batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    steps = {}
    for mode in modes:
        for dtype in (torch.float16, torch.bfloat16):
            like = deepcopy(model).to("cuda", dtype)
            name = f"{mode} {str(dtype).removeprefix('torch.')}"
            steps[name] = CapturedStep(like, tokens.to("cuda", dtype), condition.to("cuda", dtype), GUIDANCE, mode)
    return steps


def _run(decode: Callable[[], object], lap: Lap) -> None:
    decode()


def _row(name: str, milliseconds: float, ours: OurStep, bandwidth: float) -> dict[str, Any]:
    """Figures of one of our ways to compute a step."""
    floor = 1000 * ours.bytes / bandwidth
    token = milliseconds / ours.tokens
    return {
        "what": name,
        "ms a token": token,
        "floor ms": floor,
        "of bandwidth %": 100 * floor / token,
        "host us a token": 1e6 * statistics.median(ours.launching),
        "kernels": ours.runner.kernels_per_step,
        "images/s": 1000 * ours.sampler.manifest.batch / milliseconds,
    }


def _profile(setting: Setting, variant: str) -> list[dict[str, Any]]:
    """Kernels of a step by the time they take, from CUPTI."""
    ours = OurStep(setting.large_bundle, "onnxruntime", variant, 1)
    with ours.sampler:
        ours.decode()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            ours.decode()
    events = [event for event in profile.key_averages() if event.device_time_total]
    events.sort(key=lambda event: -event.device_time_total)
    return [
        {
            "us a step": event.device_time_total / ours.tokens,
            "a step": event.count / ours.tokens,
            "kernel": event.key[:100].replace("|", " "),
        }
        for event in events[:25]
    ]


STAGES = {
    "machine": Stage(machine, 30),
    "export": Stage(export, 90),
    "verify-digits": Stage(verify_digits, 40),
    "steps": Stage(steps, 150),
    "verify-large": Stage(verify_large, 60),
    "kernels": Stage(kernels, 40),
    "xqa": Stage(xqa, 30),
    "emoji": Stage(emoji, 120),
    "continuous": Stage(continuous, 40),
    "batches": Stage(batches, 120),
    "tensorrt": Stage(tensorrt, 200),
}
