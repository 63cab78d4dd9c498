"""What training the published 3B text-to-image model takes on several GPUs, without one: sizes counted, a step's memory traced.

The model of `benchmarks.published_layout` is laid out by FSDP2 among processes that do not exist, and one forward and backward pass
runs on tensors without content (PyTorch's fake tensors, in bfloat16, each layer recomputed), while PyTorch's memory tracker counts.
What a GPU holds besides follows from the number of parameters; the time follows from the number of operations and the share of the
peak that is asked for.

Example: python -m benchmarks.published_training --processes 8 --images 8
"""

import argparse
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from benchmarks.published_layout import NAME, OPTIONS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.families import build_flow
from starflow.training.layers.transformer import Layer
from starflow.training.published.config import read_config

GIB = 2**30
PEAKS = {"H100 SXM": 989e12, "A100": 312e12}  # bfloat16 without sparsity, FLOP/s, by NVIDIA's data sheets


def published_model() -> StarflowConfig:
    """The configuration as the published YAML has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{NAME}.yaml"
        path.write_text(yaml.safe_dump({"arguments": [{name: value} for name, value in OPTIONS.items()]}))
        model = read_config(path).checkpoint.model
    assert isinstance(model, StarflowConfig)
    return model


def layers_of(flow: nn.Module) -> list[Layer]:
    """The repeated layers, which are sharded and recomputed one by one."""
    return [module for module in flow.modules() if isinstance(module, Layer)]


def operations(model: StarflowConfig, flow: nn.Module) -> float:
    """Operations of one image's training step: forward, backward of twice that, and the forward again."""
    tokens = (model.img_size // model.patch_size) ** 2
    weights = sum(parameter.numel() for layer in layers_of(flow) for parameter in layer.parameters())
    length = tokens + model.txt_size  # of the deep block; the shallow ones, which are few layers, have less
    attention = len(layers_of(flow)) * 2 * length**2 * model.channels  # two products of the causal half
    return 4 * (2 * weights * length + attention)


def traced_bytes(model: StarflowConfig, processes: int, images: int) -> int:
    """Peak of one process's pass over its images: shards of weights and gradients, gathered layers, activations."""
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    mesh = init_device_mesh("cpu", (processes,))
    try:
        with FakeTensorMode():
            flow = build_flow(model)
            for layer in layers_of(flow):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
                fully_shard(layer, mesh=mesh)
            fully_shard(flow, mesh=mesh)
            side = model.img_size // model.patch_size
            x = torch.randn(images, model.in_channels, side, side)
            y = torch.randn(images, model.txt_size, model.txt_dim)
            tracker = FSDPMemTracker(flow)
            tracker.track_inputs((x, y))
            with tracker:
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    out = flow(x, y)
                (out.z.square().mean() - sum(log_det.mean() for log_det in out.log_dets)).backward()
            peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        return int(peak["Total"])
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Count, trace, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="number of GPUs (default: 8)")
    parser.add_argument(
        "--images", type=int, default=8, metavar="N", help="images that a GPU passes at once (default: 8)"
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        metavar="PART",
        help="part of the peak that a step reaches (default: 0.4)",
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    model = published_model()
    with torch.device("meta"):
        flow = build_flow(model)
    count = sum(parameter.numel() for parameter in flow.parameters())
    tokens = (model.img_size // model.patch_size) ** 2
    print(f"{count:,} parameters in {len(layers_of(flow))} layers, {tokens:,} tokens an image")
    traced = traced_bytes(model, arguments.processes, arguments.images)
    moments = 3 * 4 * count / arguments.processes  # of AdamW two, and the average
    whole = 4 * count  # the average, whole, to evaluate and to write checkpoints
    print(f"a GPU of {arguments.processes}, {arguments.images} images at once, GiB:")
    for what, size in (
        ("pass: shards of weights and gradients, gathered layers, activations", traced),
        ("moments and average, shards", moments),
        ("average, whole", whole),
        ("sum", traced + moments + whole),
    ):
        print(f"  {size / GIB:6.1f}  {what}")
    work = operations(model, flow)
    print(f"{work / 1e12:.1f} TFLOP an image; at {arguments.utilisation:.0%} of the peak of")
    for name, peak in PEAKS.items():
        images = arguments.processes * arguments.utilisation * peak / work
        print(f"  {arguments.processes} x {name}: {images:,.0f} images/s, {images * tokens:,.0f} tokens/s")


if __name__ == "__main__":
    main()
