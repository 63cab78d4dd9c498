r"""Import published STARFlow or TARFlow weights as a checkpoint.

Reads a .pth or .safetensors file and the configuration it was trained with (the YAML of apple/ml-starflow, a JSON file of
constructor options, or --set alone), checks every tensor's name and shape, and writes a checkpoint folder for `starflow
export`. A .pth file is read without running anything in it. Weights keep their number type unless --half is given; they
are converted one tensor at a time, so a model may be as large as the memory.

Example:
  starflow import starflow_3B_t2i_256x256.pth --config starflow_3B_t2i_256x256.yaml -o t2i --half
  starflow import imagenet64_model_2_768_8_8_0.05.pth -o imagenet64 --family tarflow \
      --set img_size=64 --set patch_size=2 --set channels=768 --set blocks=8 --noise-std 0.05
"""

import argparse
import json
from pathlib import Path

from starflow.runtime.plain.errors import CheckpointError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("weights", type=Path, help=".pth or .safetensors file")
    parser.add_argument("--config", type=Path, help="YAML or JSON; without it, --family and --set say everything")
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--family", choices=("starflow", "tarflow"), help="where the configuration does not say it")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="change or add an option, by its name in the published code or in config.json",
    )
    parser.add_argument("--classes", type=int, metavar="N", help="the model is conditioned on N classes")
    parser.add_argument(
        "--class-names", nargs="+", metavar="NAME", help="names of the classes, or a text file with one a line"
    )
    parser.add_argument("--noise-std", type=float, metavar="X", help="standard deviation of the noise in training")
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Import; 0 when the checkpoint stands."""
    import torch

    from starflow.runtime.plain.progress import progress_bar
    from starflow.training.autoregressive.model import build_model, parameter_count
    from starflow.training.autoregressive.state_check import check_tensors
    from starflow.training.checkpoint import save_checkpoint
    from starflow.training.published.config import read_config
    from starflow.training.published.weights import open_weights

    if arguments.classes is not None and arguments.classes < 1:
        raise UsageError(f"--classes: found {arguments.classes}, expected 1 or more")
    published = read_config(
        arguments.config,
        arguments.set,
        family=arguments.family,
        num_classes=arguments.classes,
        class_names=_class_names(arguments.class_names),
        noise_std=arguments.noise_std,
    )
    config = published.checkpoint
    weights = open_weights(arguments.weights)
    with torch.device("meta"):
        model = build_model(config.model)
    check_tensors(str(arguments.weights), {name: tuple(tensor.shape) for name, tensor in weights.items()}, model)
    state = {name: weights[name] for name in model.state_dict()}
    with progress_bar("importing", enabled=not arguments.json) as bar:
        try:
            save_checkpoint(arguments.out, config, state, half=arguments.half, replace=arguments.force, progress=bar)
        except CheckpointError as error:
            raise CheckpointError(f"{arguments.weights}: {error}") from None

    summary = {
        "checkpoint": str(arguments.out),
        "family": config.model.family,
        "parameters": parameter_count(model),
        "layers": [block.layers for block in model.block_configs],
        "bytes": (arguments.out / "model.safetensors").stat().st_size,
        "conditioning": config.conditioning.model_dump(exclude_none=True),
        "noise_std": config.noise_std,
        "ignored": list(published.ignored),
    }
    if arguments.json:
        print(json.dumps(summary))
        return 0
    ignored = f"; ignored {', '.join(published.ignored)}" if published.ignored else ""
    print(
        f"{arguments.out}: {config.model.family}, {summary['parameters']:,} parameters in {len(model.block_configs)}"
        f" blocks, conditioning {config.conditioning.kind}, noise_std {config.noise_std:g}{ignored}"
    )
    return 0


def _class_names(values: list[str] | None) -> list[str] | None:
    if values is None or len(values) > 1 or not Path(values[0]).is_file():
        return values
    try:
        return [line.strip() for line in Path(values[0]).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"--class-names {values[0]}: cannot be read as text, one name a line") from None
