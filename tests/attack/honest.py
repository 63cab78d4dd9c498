"""The whole artifacts that are damaged: tiny models with random weights, as checkpoints and as bundles."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starflow.runtime.command_line import main


def one_thread() -> None:
    """Let this process compute with one thread: more wait for each other, and none may run when it forks."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def starflow(*words: str | Path) -> None:
    """Run a command that has to work."""
    if status := main([str(word) for word in words]):
        raise RuntimeError(f"starflow {' '.join(map(str, words))}: exit status {status}")


def make_class(folder: Path) -> None:
    """A class-conditional STARFlow: four variants, one of them int8, a plan, and engines where they can be built."""
    from tests.models import class_config, write_checkpoint

    write_checkpoint(folder / "checkpoint", class_config())
    bundle = folder / "bundle"
    starflow("export", folder / "checkpoint", "-o", bundle, "--batch", "2", "--precision", "fp32", "fp16")
    starflow("calibrate", bundle, "--weights", "int8", "--plain", "--lowering", "cpu")
    starflow("calibrate", bundle, "--plan", "--images", "2", "--budget", "0.5", "--variant", "portable-fp32")
    if importlib.util.find_spec("tensorrt_rtx"):
        starflow("build", bundle, "--target", "tensorrt-rtx:8.9")


def make_small(folder: Path) -> None:
    """The same with two variants and nothing else, which is made in a second."""
    from tests.models import class_config, write_checkpoint

    write_checkpoint(folder / "checkpoint", class_config())
    starflow("export", folder / "checkpoint", "-o", folder / "bundle", "--batch", "2")


def make_velocity(folder: Path) -> None:
    """A class-conditional continuous flow with a plan."""
    from tests.models import velocity_config, write_velocity

    write_velocity(folder / "checkpoint", velocity_config())
    starflow("export", folder / "checkpoint", "-o", folder / "bundle", "--batch", "2")
    starflow("calibrate", folder / "bundle", "--plan", "--images", "2", "--budget", "0.5")


def make_captions(folder: Path) -> None:
    """A STARFlow conditioned on the features of a BERT, which is in the bundle with its tokenizer."""
    from starflow.training.config import TextEncoding
    from tests.models import features_config, write_checkpoint
    from tests.text_encoders import write_bert

    write_bert(folder / "bert")
    text = TextEncoding(encoder=str(folder / "bert"), template="a {caption}")
    config = features_config(tokens=6, width=16).model_copy(update={"text": text})
    write_checkpoint(folder / "checkpoint", config)
    starflow("export", folder / "checkpoint", "-o", folder / "bundle", "--batch", "2")


def make_latents(folder: Path) -> None:
    """A STARFlow over the latents of an autoencoder, which is in the bundle."""
    _latent_checkpoint(folder / "checkpoint", 0)
    starflow("export", folder / "checkpoint", "-o", folder / "bundle", "--batch", "2")


def _latent_checkpoint(folder: Path, seed: int) -> None:
    import torch
    from diffusers import AutoencoderTiny

    from starflow.training.config import ImageRange
    from tests.models import unconditional_config, write_latent_checkpoint

    torch.manual_seed(seed)
    network: Any = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    config = unconditional_config().model_copy(update={"image": ImageRange(mode="latent")})
    write_latent_checkpoint(folder, config, network, (1, 16, 16))


def make_shapes(folder: Path) -> None:
    """A STARFlow of two shapes."""
    from tests.models import unconditional_config, write_checkpoint

    write_checkpoint(folder / "checkpoint", unconditional_config())
    starflow("export", folder / "checkpoint", "-o", folder / "bundle", "--shape", "8x8", "--shape", "4x8")


def make_pair(folder: Path) -> None:
    """Two checkpoints of one configuration: the images of either tell which one made them."""
    from tests.models import class_config, write_checkpoint

    write_checkpoint(folder / "checkpoint", class_config())
    write_checkpoint(folder / "earlier", class_config(), seed=1)


def make_latent_pair(folder: Path) -> None:
    """Two checkpoints over latents, whose decoders are opened late."""
    _latent_checkpoint(folder / "checkpoint", 0)
    _latent_checkpoint(folder / "earlier", 1)


MAKERS: dict[str, Callable[[Path], None]] = {
    "class": make_class,
    "small": make_small,
    "velocity": make_velocity,
    "captions": make_captions,
    "latents": make_latents,
    "shapes": make_shapes,
    "pair": make_pair,
    "latent pair": make_latent_pair,
}


def make_honest(folder: Path, names: tuple[str, ...]) -> str:
    """Make the artifacts of these names, each in a folder of its own with `checkpoint` and `bundle`; there is nothing to tell."""
    import torch

    torch.set_num_threads(1)
    for name in names:
        if not (folder / name).exists():
            part = folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            MAKERS[name](part)
            part.rename(folder / name)
    return ""
