r"""The exported loop against PyTorch: same random weights, same noise, one process, interleaved.

Sizes S and M are one deep block with guidance and random weights, too large for any last-level cache: what is compared is how
well each uses memory. `digits` is the shipped model. PyTorch runs its own sampler, whose cache grows; with --compile also what
`torch.compile` makes of a step with static caches, in float32 and bfloat16, weights frozen into it.

Every variant of the cpu lowering in the folder's bundle takes part, so quantised ones can be put there first.

Examples:
  python -m benchmarks.pytorch_comparison --size M --compile
  python -m benchmarks.pytorch_comparison --size M --folder out/speed-M --repetitions 0
  starflow calibrate out/speed-M/bundle --weights int8 --lowering cpu --budget 0.03 --images 2 \
    --condition out/speed-M/condition.npy --null-condition out/speed-M/null.npy
  python -m benchmarks.pytorch_comparison --size M --folder out/speed-M
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from benchmarks.static_torch import StaticStep, decode
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.backends.memory_bandwidth import HostBandwidthProbe
from starflow.runtime.bundle.bytes_read import pass_bytes
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import load_autoregressive, save_checkpoint
from starflow.training.config import CheckpointConfig, Conditioning
from starflow.training.families import build_flow
from starflow.training.layers.tokens import patchify, unpatchify

SIZES = {"S": (512, 8), "M": (1024, 12)}  # width, layers
TEXT_TOKENS, TEXT_WIDTH = 8, 256
DIGITS = Path(__file__).parent.parent / "examples" / "digits" / "checkpoint"
GUIDANCE = 2.0


def random_model(width: int, layers: int) -> tuple[CheckpointConfig, AutoregressiveFlow]:
    """One flow block over 16x16 tokens with the published options, weights scaled so that samples stay finite."""
    config = StarflowConfig(
        in_channels=16,
        img_size=16,
        channels=width,
        head_dim=64,
        num_blocks=1,
        layers_per_block=(layers,),
        txt_size=TEXT_TOKENS,
        txt_dim=TEXT_WIDTH,
        cond_top_only=True,
        rope=True,
        sos=True,
        use_softplus=True,
        soft_clip=4,
        use_final_norm=True,
    )
    torch.manual_seed(0)
    model = build_flow(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj_out.weight"):
                parameter.normal_(std=0.3 / width**0.5)
    return CheckpointConfig(model=config, conditioning=Conditioning(kind="features", tokens=8, width=TEXT_WIDTH)), model


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given:
        yield given
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _prepare(size: str, folder: Path) -> tuple[AutoregressiveFlow, NDArray, NDArray]:
    """The model, a condition and the null condition; checkpoint, bundle and conditions in the folder."""
    if size == "digits":
        config, model = load_autoregressive(DIGITS)
        condition, null = np.eye(11, dtype=np.float32)[[3, 10]][:, None, None]
    else:
        config, model = random_model(*SIZES[size])
        condition, null = np.random.default_rng(1).standard_normal((2, 1, TEXT_TOKENS, TEXT_WIDTH), np.float32)
    if not (folder / "bundle").exists():
        save_checkpoint(folder / "checkpoint", config, model.state_dict())
        export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions())
        np.save(folder / "condition.npy", condition[0])
        np.save(folder / "null.npy", null[0])
    return model, condition, null


def _compiled(model: AutoregressiveFlow, dtype: torch.dtype, noise: NDArray, rows: NDArray) -> Callable[[], NDArray]:
    """The model's only block with static caches, compiled with its weights frozen."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    model = copy.deepcopy(model).to(dtype)
    block = model.blocks[0]
    assert isinstance(block, FlowBlock)
    reverse = model.block_configs[0].reversed
    z = patchify(torch.from_numpy(noise), 1, channel_first=model.channel_first).to(dtype)
    z = z.flip(1) if reverse else z
    step = StaticStep(model, block, len(noise), rows.shape[1], GUIDANCE)
    forward = torch.compile(step)
    side, condition = model.side, torch.from_numpy(rows).to(dtype)

    def run() -> NDArray:
        tokens = decode(step, forward, z, condition)
        tokens = tokens.flip(1) if reverse else tokens
        image: NDArray = unpatchify(tokens.float(), 1, side, side, channel_first=model.channel_first).numpy()
        return image

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["digits", *sorted(SIZES)], default="M")
    parser.add_argument("--repetitions", type=int, default=3, help="0 only prepares the folder")
    parser.add_argument("--folder", type=Path, help="where checkpoint and bundle are kept (default: thrown away)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well; not for digits")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.compile and arguments.size == "digits":
        parser.error("--compile is for a single flow block: size S or M")
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(arguments.folder))
        model, text, null = _prepare(arguments.size, folder)
        if arguments.repetitions:
            summary = _compare(arguments, model, text, null, folder / "bundle", stack)
            print(json.dumps(summary, indent=1)) if arguments.json else _print(summary)


def _compare(
    arguments: argparse.Namespace,
    model: AutoregressiveFlow,
    text: NDArray,
    null: NDArray,
    bundle: Path,
    stack: ExitStack,
) -> dict:
    cpu = stack.enter_context(Sampler.open(bundle, variant="cpu-fp32", plan="sequential"))
    names = [variant.name for variant in cpu.manifest.variants if variant.lowering == "cpu"]
    samplers = {
        name: stack.enter_context(Sampler.open(bundle, variant=name, plan="sequential"))
        for name in (*names, "portable-fp32")
    }
    noise = cpu.noise(1, seed=0)
    ways: dict[str, Callable[[], NDArray]] = {
        "PyTorch reverse": lambda: model.reverse(
            torch.from_numpy(noise), torch.from_numpy(text), torch.from_numpy(null), guidance=GUIDANCE
        ).numpy()
    }
    if arguments.compile:
        rows = np.concatenate([text, null])
        ways["compiled fp32"] = _compiled(model, torch.float32, noise, rows)
        ways["compiled bf16"] = _compiled(model, torch.bfloat16, noise, rows)
    for name, sampler in samplers.items():
        ways[name] = lambda sampler=sampler: sampler.generate(noise, text, null, guidance=GUIDANCE)  # type: ignore[misc]
    read = {name: sum(pass_bytes(sampler.manifest, sampler.variant).values()) for name, sampler in samplers.items()}

    def floor_bytes(name: str) -> int:
        return read.get(name, read["cpu-fp32"] // (2 if name == "compiled bf16" else 1))

    outputs = {name: way() for name, way in ways.items()}  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    bandwidths = []
    with HostBandwidthProbe() as probe:
        for _ in range(arguments.repetitions):
            for name, way in ways.items():
                bandwidths.append(probe.measure())  # and lets the threads of what ran before come to rest
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    tokens, bandwidth = cpu.bundle.autoregressive.model.tokens, statistics.median(bandwidths)
    base, reference = seconds["PyTorch reverse"], outputs["PyTorch reverse"]
    return {
        "size": arguments.size,
        "weight_megabytes": sum(graph.weight_bytes for graph in cpu.variant.graphs) / 1e6,
        "tokens": tokens,
        "bandwidth_gigabytes_per_second": bandwidth / 1e9,
        "repetitions": arguments.repetitions,
        "threads": torch.get_num_threads(),
        "ways": {
            name: {
                "milliseconds_per_token": 1000 * statistics.median(times) / tokens,
                "fastest": 1000 * min(times) / tokens,
                "times_faster": statistics.median(b / t for b, t in zip(base, times, strict=True)),
                "bytes_per_token": floor_bytes(name),
                "percent_of_floor": 100 * floor_bytes(name) / bandwidth / (statistics.median(times) / tokens),
                "error": float(np.linalg.norm(outputs[name] - reference) / np.linalg.norm(reference)),
            }
            for name, times in seconds.items()
        },
    }


def _print(summary: dict) -> None:
    print(
        f"size {summary['size']}: {summary['weight_megabytes']:.0f} MB of weights, {summary['tokens']} tokens, guidance"
    )
    print(
        f"bandwidth {summary['bandwidth_gigabytes_per_second']:.1f} GB/s, {summary['repetitions']} repetitions, "
        f"{summary['threads']} threads"
    )
    print(f"{'':<18}{'ms/token':>10}{'fastest':>10}{'x faster':>10}{'MB/token':>10}{'% floor':>9}{'error':>10}")
    for name, row in summary["ways"].items():
        print(
            f"{name:<18}{row['milliseconds_per_token']:>10.2f}{row['fastest']:>10.2f}{row['times_faster']:>10.2f}"
            f"{row['bytes_per_token'] / 1e6:>10.1f}{row['percent_of_floor']:>9.0f}{row['error']:>10.1e}"
        )


if __name__ == "__main__":
    main()
