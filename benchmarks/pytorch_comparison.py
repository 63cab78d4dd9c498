"""The exported loop against the project's own PyTorch `reverse`: same random weights, one process, interleaved.

Sizes S and M are one deep block with guidance and random weights, too large for any last-level cache: what is compared is how
well each uses memory. `digits` is the shipped model.

Example: python -m benchmarks.pytorch_comparison --size M
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.benchmark import step_bytes
from starflow.runtime.memory_bandwidth import HostBandwidthProbe
from starflow.training.checkpoint import load_model, save_checkpoint
from starflow.training.config import CheckpointConfig, Conditioning, StarflowConfig
from starflow.training.model import FlowModel, build_model

SIZES = {"S": (512, 8), "M": (1024, 12)}  # width, layers
TEXT_TOKENS, TEXT_WIDTH = 8, 256
DIGITS = Path(__file__).parent.parent / "examples" / "digits" / "checkpoint"
GUIDANCE = 2.0


def random_model(width: int, layers: int) -> tuple[CheckpointConfig, FlowModel]:
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
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj_out.weight"):
                parameter.normal_(std=0.3 / width**0.5)
    return CheckpointConfig(model=config, conditioning=Conditioning(kind="features", tokens=8, width=TEXT_WIDTH)), model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["digits", *sorted(SIZES)], default="M")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.size == "digits":
        config, model = load_model(DIGITS)
        text, null = np.eye(11, dtype=np.float32)[[3, 10]][:, None, None]
    else:
        config, model = random_model(*SIZES[arguments.size])
        text, null = np.random.default_rng(1).standard_normal((2, 1, TEXT_TOKENS, TEXT_WIDTH), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "checkpoint", Path(folder) / "bundle"
        save_checkpoint(checkpoint, config, model.state_dict())
        export_checkpoint(checkpoint, bundle, ExportOptions())
        with Sampler.open(bundle, variant="cpu-fp32") as cpu, Sampler.open(bundle, variant="portable-fp32") as portable:
            noise = cpu.noise(1, seed=0)
            ways = {
                "PyTorch reverse": lambda: model.reverse(
                    torch.from_numpy(noise), torch.from_numpy(text), torch.from_numpy(null), guidance=GUIDANCE
                ).numpy(),
                "cpu-fp32": lambda: cpu.generate(noise, text, null, guidance=GUIDANCE),
                "portable-fp32": lambda: portable.generate(noise, text, null, guidance=GUIDANCE),
            }
            graphs = cpu.variant.graphs
            read = sum(step_bytes(graph, cpu.manifest.blocks[graph.block]) for graph in graphs)
            weight_bytes = sum(graph.weight_bytes for graph in graphs)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            outputs = {name: way() for name, way in ways.items()}  # warm up
            bandwidths = []
            with HostBandwidthProbe() as probe:
                for _ in range(arguments.repetitions):
                    for name, way in ways.items():
                        start = time.perf_counter()
                        way()
                        seconds[name].append(time.perf_counter() - start)
                        bandwidths.append(probe.measure())
            tokens = cpu.manifest.model.tokens
    reference = outputs["PyTorch reverse"]
    bandwidth = statistics.median(bandwidths)
    floor = 1000 * read / bandwidth
    base = statistics.median(seconds["PyTorch reverse"])
    rows = {
        name: {
            "milliseconds_per_token": 1000 * statistics.median(times) / tokens,
            "fastest": 1000 * min(times) / tokens,
            "times_faster": base / statistics.median(times),
            "percent_of_floor": 100 * floor / (1000 * statistics.median(times) / tokens),
            "largest_difference": float(np.abs(outputs[name] - reference).max()),
        }
        for name, times in seconds.items()
    }
    summary = {
        "size": arguments.size,
        "weight_megabytes": weight_bytes / 1e6,
        "bytes_per_token": read,
        "bandwidth_gigabytes_per_second": bandwidth / 1e9,
        "floor_milliseconds": floor,
        "threads": torch.get_num_threads(),
        "ways": rows,
    }
    if arguments.json:
        print(json.dumps(summary, indent=1))
        return
    print(f"size {arguments.size}: {weight_bytes / 1e6:.0f} MB of weights, {tokens} tokens, guidance (2 rows)")
    print(f"bandwidth {bandwidth / 1e9:.1f} GB/s, floor {floor:.2f} ms per token, {arguments.repetitions} repetitions")
    print(f"{'':<18}{'ms/token':>10}{'fastest':>10}{'x faster':>10}{'% floor':>9}{'max |difference|':>18}")
    for name, row in rows.items():
        print(
            f"{name:<18}{row['milliseconds_per_token']:>10.2f}{row['fastest']:>10.2f}{row['times_faster']:>10.2f}"
            f"{row['percent_of_floor']:>9.0f}{row['largest_difference']:>18.2g}"
        )


if __name__ == "__main__":
    main()
