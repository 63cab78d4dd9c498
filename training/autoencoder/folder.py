"""An autoencoder's folder: diffusers' own two files, and what a flow over its latents needs to know.

    config.json, diffusion_pytorch_model.safetensors    as diffusers reads and writes them
    starflow.json                                       an `AutoencoderRecord`, where `starflow train` wrote the folder
    noisy_decoder.safetensors                           the decoder fine-tuned on noisy latents, where there is one

A folder without the last two is any diffusers autoencoder.
"""

import copy
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.plain.own_folder import AUTOENCODER
from starflow.training.autoencoder.network import Autoencoder, decoder_state, load_autoencoder
from starflow.training.config import LatentScaling, PixelShape
from starflow.training.frozen import Frozen, read_json
from starflow.training.tensor_file import check_digest, checkpoint_folder, write_tensors

WEIGHTS, RECORD, NOISY_DECODER = "diffusion_pytorch_model.safetensors", "starflow.json", "noisy_decoder.safetensors"


class AutoencoderRecord(Frozen):
    """`starflow.json`."""

    pixel_shape: PixelShape  # [C, H, W] of the images it was trained on
    latent: LatentScaling  # gives the latents of the training set mean 0 and standard deviation 1
    # Standard deviation of the noise that the noisy decoder removes, on scaled latents.
    noisy_decoder_std: float | None = Field(None, gt=0)


@dataclass(frozen=True)
class AutoencoderFolder:
    """An autoencoder read from its folder `path`, float32, in evaluation mode."""

    path: Path
    autoencoder: Autoencoder
    noisy: Autoencoder | None  # the same encoder with the decoder for noisy latents; None if there is none
    record: AutoencoderRecord | None  # None for a folder that starflow did not write


def open_autoencoder(folder: Path) -> AutoencoderFolder:
    """Read a folder.

    Raises:
        CheckpointError: it does not hold an autoencoder, or is damaged.
        UsageError: diffusers is not installed.
    """
    if (folder / WEIGHTS).is_file():
        check_digest(folder / WEIGHTS)
    autoencoder = load_autoencoder(folder)
    record = read_json(folder / RECORD, AutoencoderRecord) if (folder / RECORD).is_file() else None
    path, noisy = folder / NOISY_DECODER, None
    if record is not None and record.noisy_decoder_std is not None:
        try:
            check_digest(path)
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: missing or damaged ({error}); copy the folder again") from None
        expected = {name: value.shape for name, value in decoder_state(autoencoder).items()}
        if {name: value.shape for name, value in state.items()} != expected:
            raise CheckpointError(f"{path}: is not the decoder of {folder / 'config.json'}; copy the folder again")
        noisy = copy.deepcopy(autoencoder)
        noisy.network.load_state_dict(state, strict=False)
    return AutoencoderFolder(folder, autoencoder, noisy, record)


def save_autoencoder(
    folder: Path,
    autoencoder: Autoencoder,
    record: AutoencoderRecord,
    *,
    noisy: Autoencoder | None = None,
    extra_files: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write a folder, whole or not at all; an existing one gives way.

    Args:
        autoencoder: Holds the encoder and the plain decoder.
        record: Its `latent` is written into diffusers' configuration as well.
        noisy: Holds the decoder for noisy latents.
        extra_files: Text files to store with it, such as recipe.yaml and metrics.json.
        half: Store the weights as float16.

    Raises:
        CheckpointError: see `write_tensors`; or the disk is full.
    """
    network = autoencoder.network
    told = {"scaling_factor": record.latent.scale, "shift_factor": record.latent.shift, "_name_or_path": ""}
    network.register_to_config(**told)  # leaves out the path it was read from
    with checkpoint_folder(folder, AUTOENCODER, extra_files) as temporary:
        network.save_config(temporary)
        write_tensors(temporary / WEIGHTS, network.state_dict(), half=half)
        (temporary / RECORD).write_text(record.model_dump_json(indent=2, exclude_none=True) + "\n")
        if noisy is not None:
            write_tensors(temporary / NOISY_DECODER, decoder_state(noisy), half=half)


def autoencoder_digest(folder: Path) -> str:
    """SHA-256 of the files an autoencoder consists of."""
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def copy_autoencoder(source: Path, destination: Path) -> None:
    """Copy the files an autoencoder consists of, and no others, into a new folder."""
    destination.mkdir()
    for file in _files(source):
        shutil.copyfile(file, destination / file.name)


def _files(folder: Path) -> list[Path]:
    names = ("config.json", WEIGHTS, RECORD, NOISY_DECODER)
    return [folder / name for name in names if (folder / name).is_file()]
