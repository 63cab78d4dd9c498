r"""Import published STARFlow or TARFlow weights as a checkpoint.

Reads a .pth or .safetensors file and the configuration it was trained with: the YAML file of apple/ml-starflow, a JSON file
of constructor options, or --family and --set alone. Compares the name and shape of every tensor with that configuration,
and writes a checkpoint folder for `starflow export`. No code in a .pth file is run. Weights keep their number type unless
--half is given. They are converted one tensor at a time, so a model may be as large as the memory.

Example:
  starflow import starflow_3B_t2i_256x256.pth --config starflow_3B_t2i_256x256.yaml -o t2i --half
  starflow import imagenet64_model_2_768_8_8_0.05.pth -o imagenet64 --family tarflow \
      --set img_size=64 --set patch_size=2 --set channels=768 --set blocks=8 --noise-std 0.05
"""

import argparse
import json
import os
from pathlib import Path

from starflow.runtime.plain.errors import CheckpointError, UsageError
from starflow.runtime.plain.limits import MOST_JSON_BYTES
from starflow.runtime.plain.regular_file import read_text


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("weights", type=Path, help="weights file, .pth or .safetensors")
    parser.add_argument(
        "--config", type=Path, help="configuration file, YAML or JSON (default: --family and --set alone)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--family", choices=("starflow", "tarflow"), help="model family, if the configuration does not name it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="change or add an option, named as in the published code or in config.json; may be repeated",
    )
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes of a class-conditional model")
    parser.add_argument(
        "--class-names", nargs="+", metavar="NAME", help="names of the classes, or a text file with one name per line"
    )
    parser.add_argument(
        "--noise-std", type=float, metavar="X", help="standard deviation of the noise the model was trained with"
    )
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    parser.add_argument(
        "--force", action="store_true", help="replace an existing checkpoint; any other folder is refused"
    )
    parser.add_argument("--json", action="store_true", help="print a summary of the checkpoint as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Import. Exit status 0 if the checkpoint was written."""
    import torch

    from starflow.runtime.plain.atomic_write import check_output_folder
    from starflow.runtime.plain.own_folder import CHECKPOINT
    from starflow.runtime.plain.progress import progress_bar
    from starflow.training.autoregressive.model import AutoregressiveFlow
    from starflow.training.checkpoint import save_checkpoint
    from starflow.training.families import build_flow
    from starflow.training.published.config import read_config
    from starflow.training.published.weights import open_weights
    from starflow.training.state_check import check_tensors

    if arguments.classes is not None and arguments.classes < 1:
        raise UsageError(f"--classes: found {arguments.classes}, expected a number of at least 1")
    published = read_config(
        arguments.config,
        arguments.set,
        family=arguments.family,
        num_classes=arguments.classes,
        class_names=_class_names(arguments.class_names),
        noise_std=arguments.noise_std,
    )
    config = published.checkpoint
    check_output_folder(arguments.out, CHECKPOINT, replace=arguments.force, source=arguments.weights)
    weights = open_weights(arguments.weights)
    with torch.device("meta"):
        model = build_flow(config.model)
    assert isinstance(model, AutoregressiveFlow)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    check_tensors(str(arguments.weights), shapes, model, options="--config, --family and --set")
    state = {name: weights[name] for name in model.state_dict()}
    with progress_bar("importing", enabled=not arguments.json) as bar:
        try:
            save_checkpoint(
                arguments.out,
                config,
                state,
                half=arguments.half,
                replace=arguments.force,
                source=arguments.weights,
                progress=bar,
            )
        except CheckpointError as error:
            raise CheckpointError(f"{arguments.weights}: {error}") from None

    summary = {
        "checkpoint": str(arguments.out),
        "family": config.model.family,
        "parameters": model.parameter_count,
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
    if values is None or len(values) > 1 or not os.path.isfile(values[0]):
        return values
    try:
        text = read_text(Path(values[0]), MOST_JSON_BYTES)
        return [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"--class-names {values[0]}: cannot be read; expected a text file with one name per line"
        ) from None
