"""Export a checkpoint as a bundle of per-step ONNX graphs.

A bundle runs without torch and holds two lowerings of every flow block: *cpu*, the fastest on ONNX Runtime, and *portable*, for
TensorRT and all other providers. A third, *cuda*, is the fastest on ONNX Runtime with an NVIDIA GPU: --lowering cuda --precision fp16.

Examples:
  starflow export out/digits/run/checkpoint -o digits.bundle --batch 8
  starflow export examples/emoji/checkpoint -o emoji.bundle --batch 1,8
  starflow export t2i/ -o t2i.bundle --precision fp16 --shape 32x32 --shape 24x40
  starflow export out/digits/run/checkpoint -o digits.bundle --student digits.student
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.whole_number import whole_number

if TYPE_CHECKING:
    from starflow.runtime.bundle.network_spec import DenoiserKind


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="folder written by `starflow train` or `starflow import`")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--out", type=Path, required=True, help="bundle folder to write")
    output.add_argument("--force", action="store_true", help="replace an existing bundle; any other folder is refused")
    output.add_argument("--json", action="store_true", help="print what was written as JSON")
    graphs = parser.add_argument_group("graphs")
    graphs.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "fp16", "bf16"),
        default=["fp32"],
        metavar="{fp32,fp16,bf16}",
        help="number types of weights, activations and caches (default: fp32); with fp16 the cpu lowering stores weights in half "
        "precision and computes in fp32; bf16 runs on TensorRT only",
    )
    graphs.add_argument(
        "--lowering",
        nargs="+",
        choices=("portable", "cpu", "cuda"),
        default=["portable", "cpu"],
        metavar="{portable,cpu,cuda}",
        help="how graphs are written (default: portable cpu): cpu for ONNX Runtime on the CPU, cuda for ONNX Runtime on NVIDIA GPUs "
        "(autoregressive flows in fp16; its fp32 runs on the CPU, to be compared), portable for TensorRT and all others",
    )
    graphs.add_argument(
        "--batch",
        metavar="N,N,...",
        default="1",
        help="number of images sampled together (default: 1); give several, such as 1,8, and the bundle holds graphs of each over "
        "the same weights, and every request runs in the smallest batches that hold it",
    )
    graphs.add_argument(
        "--shape",
        metavar="HxW",
        action="append",
        help="height and width of the data, which are latents if the model was trained on latents (default: the training size); "
        "give it several times and the bundle of an autoregressive flow holds all these shapes over the same weights, the first "
        "one as its default",
    )
    graphs.add_argument(
        "--guidance",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run conditioned networks with and without the condition, which guidance needs (default); without it a step costs "
        "half as much and takes no guidance",
    )
    graphs.add_argument(
        "--condition-tokens",
        type=int,
        metavar="M",
        help="number of text tokens (default: the number the model was trained on)",
    )
    graphs.add_argument(
        "--activations",
        type=Path,
        metavar="FILE.npz",
        help="check with this data that activations fit into fp16, instead of with samples drawn from the model: arrays x "
        "[N, C, H, W], scaled as in training, and condition (features or class ids)",
    )
    autoregressive = parser.add_argument_group("autoregressive flows")
    autoregressive.add_argument(
        "--max-chunk", type=int, metavar="S", help="largest number of tokens that one run may take (default: no limit)"
    )
    autoregressive.add_argument(
        "--attention-temperature", action="store_true", help="let the attention temperature be chosen when sampling"
    )
    autoregressive.add_argument(
        "--denoise",
        nargs="+",
        choices=("score", "learned", "none"),
        metavar="{score,learned,none}",
        help="denoisers to write: the flow's own score, whose graph takes seconds to minutes to trace; or the denoiser trained "
        "beside the flow (default: the learned one, if the model has one)",
    )
    autoregressive.add_argument(
        "--student",
        action="append",
        default=[],
        metavar="FOLDER",
        help="student of a flow block, which does it in one pass, to put into the bundle; `starflow distill` makes one (give it "
        "several times for several blocks)",
    )
    networks = parser.add_argument_group("networks beside the flow")
    networks.add_argument(
        "--text-encoder",
        metavar="FOLDER",
        help="Hugging Face folder of the text encoder to put into the bundle, package:NAME/FOLDER for a folder inside a Python "
        "package, or none (default: the one that the checkpoint holds or names)",
    )
    networks.add_argument(
        "--text-precision",
        choices=("fp32", "fp16"),
        help="number type in which the text encoder's weights are stored; it computes in fp32 (default: the type in its folder)",
    )
    networks.add_argument(
        "--autoencoder",
        metavar="FOLDER",
        help="diffusers folder (AutoencoderKL or AutoencoderTiny) of the autoencoder to put into the bundle, or none; for models "
        "trained on latents (default: the one in the checkpoint)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 if the bundle was written."""
    from starflow.export.activations import FLOAT16_MAX, load_activation_data
    from starflow.export.exporter import ExportOptions, export_checkpoint
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.commands.shape_argument import parse_shape
    from starflow.runtime.plain.progress import progress_bar

    shapes = [shape for text in arguments.shape or () if (shape := parse_shape(text))]
    options = ExportOptions(
        precisions=tuple(dict.fromkeys(arguments.precision)),
        lowerings=tuple(dict.fromkeys(arguments.lowering)),
        batch=_batches(arguments.batch),
        shape=shapes[0] if shapes else None,
        other_shapes=shapes[1:],
        max_chunk=arguments.max_chunk,
        guidance=arguments.guidance,
        attention_temperature=arguments.attention_temperature,
        condition_tokens=arguments.condition_tokens,
        denoisers=_denoisers(arguments.denoise),
        text_encoder=arguments.text_encoder,
        text_precision=arguments.text_precision,
        autoencoder=arguments.autoencoder,
        students=arguments.student,
        activations=load_activation_data(arguments.activations) if arguments.activations else None,
    )
    with progress_bar("exporting", enabled=not arguments.json) as bar:
        manifest = export_checkpoint(
            arguments.checkpoint, arguments.out, options, replace=arguments.force, progress=bar
        )
    size = sum(file.bytes for file in Bundle(arguments.out, manifest).files())
    names = [variant.name for variant in manifest.variants]
    peaks = next((variant.activation_peaks for variant in manifest.variants if variant.activation_peaks), None)
    if arguments.json:
        facts = {"bundle": str(arguments.out), "bytes": size, "variants": names, "batch": manifest.batch}
        facts |= {"batch_sizes": manifest.batch_sizes[::-1]}
        print(json.dumps(facts | {"activation_peaks": peaks}))
    else:
        batches = ", ".join(map(str, manifest.batch_sizes[::-1]))
        print(f"{arguments.out}: {', '.join(names)}; {size / 2**20:.1f} MiB, batch {batches}")
        if peaks:
            layer = max(peaks, key=lambda name: peaks[name])
            print(f"largest activation {peaks[layer]:.4g}, in {layer}; float16 ends at {FLOAT16_MAX:,.0f}")
    return 0


def _batches(text: str) -> list[int]:
    numbers = [whole_number(number) for number in text.split(",")]
    if None in numbers:
        raise UsageError(f"--batch {text}: give numbers of images, such as 8 or 1,8")
    return [number for number in numbers if number is not None]


def _denoisers(names: list[str] | None) -> "list[DenoiserKind] | None":
    if names is None:
        return None
    if "none" in names and len(names) > 1:
        raise UsageError(f"--denoise {' '.join(names)}: give none alone, or names of denoisers")
    return [name for name in ("score", "learned") if name in names]
