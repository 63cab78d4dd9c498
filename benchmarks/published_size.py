"""Export and build a model of the published size, and say what every stage cost.

Makes a random checkpoint with the configuration of `starflow_3B_t2i_256x256` (3.85 billion parameters in six flow blocks, 1,024
tokens, 128 condition tokens), exports it in fp16 with guidance and builds RTX engines from it, each stage as the command
a user would run, and prints its time and peak memory. Nothing but the checkpoint's weights is random. Needs 30 GB of disk.

Example: python -m benchmarks.published_size out/3b
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from starflow.runtime.bundle import Bundle
from starflow.training.checkpoint import save_checkpoint
from starflow.training.config import CheckpointConfig, Conditioning, ImageRange, StarflowConfig
from starflow.training.model import build_model

CONFIG = StarflowConfig(
    in_channels=4,
    img_size=32,
    channels=3072,
    head_dim=64,
    num_blocks=6,
    layers_per_block=(2, 2, 2, 2, 2, 24),
    txt_size=128,
    txt_dim=2048,
    cond_top_only=True,
    rope=True,
    sos=True,
    seq_order="R2L",
    use_softplus=True,
    soft_clip=3,
    use_final_norm=True,
)
GIB = 2**30


class RandomWeights(Mapping[str, Tensor]):
    """A state dict that makes each tensor when it is read, scaled so that samples stay finite.

    Normal numbers come from one pool, as drawing 4 billion takes minutes. Each tensor begins elsewhere in it and its odd length
    keeps rows from repeating: TensorRT stores equal weights once.
    """

    def __init__(self, config: StarflowConfig) -> None:
        self._pool = torch.randn((1 << 24) + 7, generator=torch.Generator().manual_seed(0))
        with torch.device("meta"):
            self._shapes = {name: value.shape for name, value in build_model(config).state_dict().items()}

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight") and "final" not in name:
            return torch.ones(shape)
        if len(shape) < 2:
            return torch.zeros(shape)
        scale = 0.3 if name.endswith("proj_out.weight") else 1.0
        count, start = shape.numel(), crc32(name.encode()) % len(self._pool)
        values = self._pool.repeat(-(-(start + count) // len(self._pool)))[start : start + count]
        return values.view(shape) * (scale / shape[-1] ** 0.5)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True)
class Stage:
    """What a command cost: peak resident memory of its process, of which `anonymous` is not file cache (sampled)."""

    name: str
    seconds: float
    peak_bytes: int
    anonymous_bytes: int
    swapped_bytes: int
    status: int


def run_stage(name: str, *command: str) -> Stage:
    """Run a `starflow` command in its own process and watch its memory."""
    start = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, "-m", "starflow.runtime", *command], os.environ)
    anonymous = swapped = 0
    while True:
        finished, status, usage = os.wait4(child, os.WNOHANG)
        if finished:
            break
        fields = _memory(child)
        anonymous = max(anonymous, fields.get("RssAnon", 0))
        swapped = max(swapped, fields.get("VmSwap", 0))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    return Stage(name, seconds, usage.ru_maxrss * 1024, anonymous, swapped, os.waitstatus_to_exitcode(status))


def _memory(process: int) -> dict[str, int]:
    """Fields of /proc/PID/status in bytes; empty once the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields if len(field) == 3 and field[2] == "kB"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the checkpoint and the bundle go; kept, and used again")
    parser.add_argument("--target", default="tensorrt-rtx:8.9")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    checkpoint, bundle = arguments.folder / "checkpoint", arguments.folder / "bundle"
    if not (checkpoint / "config.json").exists():
        conditioning = Conditioning(kind="features", tokens=CONFIG.txt_size, width=CONFIG.txt_dim)
        config = CheckpointConfig(
            model=CONFIG, conditioning=conditioning, image=ImageRange(mode="latent"), noise_std=0.3
        )
        save_checkpoint(checkpoint, config, RandomWeights(CONFIG), half=True)
    stages = [
        run_stage("export fp16", "export", str(checkpoint), "-o", str(bundle), "--precision", "fp16", "--force"),
        run_stage("build", "build", str(bundle), "--target", arguments.target, "--variant", "portable-fp16", "--force"),
    ]
    weights = {graph.block: graph.weight_bytes for graph in Bundle.open(bundle).variant("portable-fp16", "").graphs}
    largest = max(weights.values())
    if arguments.json:
        print(json.dumps({"largest_block_bytes": largest, "stages": [asdict(stage) for stage in stages]}))
    else:
        print(
            f"largest block: {largest / GIB:.2f} GiB of weights; 1.3 x that + 2 GiB = {1.3 * largest / GIB + 2:.2f} GiB"
        )
        for stage in stages:
            print(
                f"{stage.name:<12} {stage.seconds:6.0f} s   peak {stage.peak_bytes / GIB:5.2f} GiB, not counting file cache "
                f"{stage.anonymous_bytes / GIB:5.2f} GiB, swapped {stage.swapped_bytes / GIB:.2f} GiB, status {stage.status}"
            )
    sys.exit(any(stage.status for stage in stages))


if __name__ == "__main__":
    main()
