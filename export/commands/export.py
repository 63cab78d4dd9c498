"""Export a checkpoint as a bundle of per-step ONNX graphs.

A bundle needs no torch to run and holds two lowerings of every flow block: *cpu* (ONNX Runtime's fastest) and *portable*
(TensorRT and every other provider).

Example:
  starflow export out/digits/run/checkpoint -o digits.bundle --batch 8
  starflow export t2i/ -o t2i.bundle --precision fp16 --shape 32x32
"""

import argparse
import json
import sys
from pathlib import Path

from starflow.runtime.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="folder written by `starflow train` or `starflow import`")
    parser.add_argument("-o", "--out", type=Path, required=True, help="bundle folder to write")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "fp16", "bf16"),
        default=["fp32"],
        help="type of weights, activations and caches; fp16 on the cpu lowering stores half and computes in fp32; "
        "bf16 is for TensorRT only",
    )
    parser.add_argument("--batch", type=int, default=1, help="images decoded together (default: 1)")
    parser.add_argument("--shape", metavar="HxW", help="data size in (latent) pixels (default: the training size)")
    parser.add_argument("--max-chunk", type=int, metavar="S", help="most tokens of one run (default: no limit)")
    parser.add_argument("--condition-tokens", type=int, metavar="M", help="text tokens (default: the trained number)")
    parser.add_argument(
        "--guidance",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run [conditional, null] rows in conditioned blocks; without it they cost half and take no guidance",
    )
    parser.add_argument(
        "--attention-temperature", action="store_true", help="make the attention temperature an input of the graphs"
    )
    parser.add_argument(
        "--activations",
        type=Path,
        metavar="FILE.npz",
        help="check that fp16 holds the activations on this data (x [N, C, H, W] as trained on, and condition: features or "
        "class ids) instead of on samples drawn from the model",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Export; 0 when the bundle stands."""
    from starflow.export.activation_check import FLOAT16_MAX
    from starflow.export.activation_data import load_activation_data
    from starflow.export.exporter import ExportOptions, export_checkpoint
    from starflow.runtime.bundle import Bundle
    from starflow.runtime.progress import progress_bar
    from starflow.training.checkpoint import open_checkpoint

    options = ExportOptions(
        precisions=tuple(dict.fromkeys(arguments.precision)),
        batch=arguments.batch,
        shape=_shape(arguments.shape),
        max_chunk=arguments.max_chunk,
        guidance=arguments.guidance,
        attention_temperature=arguments.attention_temperature,
        condition_tokens=arguments.condition_tokens,
        activations=load_activation_data(arguments.activations) if arguments.activations else None,
    )
    with progress_bar("exporting", enabled=not arguments.json) as bar:
        manifest = export_checkpoint(
            arguments.checkpoint, arguments.out, options, replace=arguments.force, progress=bar
        )
    if getattr(open_checkpoint(arguments.checkpoint)[0].model, "learnable_self_denoiser", False):
        print("the learned denoiser stays behind: a bundle does not hold one", file=sys.stderr)
    size = sum(file.bytes for file in Bundle(arguments.out, manifest).files())
    names = [variant.name for variant in manifest.variants]
    peaks = next((variant.activation_peaks for variant in manifest.variants if variant.activation_peaks), None)
    if arguments.json:
        facts = {"bundle": str(arguments.out), "bytes": size, "variants": names, "batch": manifest.batch}
        print(json.dumps(facts | {"activation_peaks": peaks}))
    else:
        print(f"{arguments.out}: {', '.join(names)}; {size / 2**20:.1f} MiB, batch {manifest.batch}")
        if peaks:
            layer = max(peaks, key=lambda name: peaks[name])
            print(f"largest activation {peaks[layer]:.4g}, in {layer}; float16 ends at {FLOAT16_MAX:,.0f}")
    return 0


def _shape(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not cross or not height.isdigit() or not width.isdigit():
        raise UsageError(f"--shape {text}: give height and width, such as 32x32")
    return int(height), int(width)
