"""Where a run begins: with the weights of a checkpoint, all of which learn, or only adapters beside them."""

from pathlib import Path
from typing import Any

from pydantic import Field

from starflow.training.checkpoint import AUTOENCODER, open_checkpoint
from starflow.training.config import CheckpointConfig
from starflow.training.flow import Flow
from starflow.training.frozen import Frozen


class AdapterConfig(Frozen):
    """LoRA (Hu et al., 2021, arXiv:2106.09685): every linear map W of the layers becomes W + alpha / rank * B A."""

    rank: int = Field(16, gt=0, le=4096)  # rows of A and columns of B
    alpha: float = Field(16.0, gt=0)  # at alpha = rank, B A is added as it is
    dropout: float = Field(0.0, ge=0, lt=1)  # share of the inputs of A that a step leaves out


class Start(Frozen):
    """A checkpoint to begin with."""

    checkpoint: Path  # a folder
    adapters: AdapterConfig | None = None  # None: all weights learn


def begin_with_checkpoint(content: dict[str, Any]) -> CheckpointConfig | None:
    """Complete what a recipe with a section `start` leaves to the checkpoint: model, noise, and latents.

    Returns:
        The configuration of the checkpoint, or None if the recipe begins with random weights, or is wrong at that place.
    """
    start = content.get("start")
    if not isinstance(start, dict) or not isinstance(start.get("checkpoint"), str):
        return None
    folder = Path(start["checkpoint"])
    config, _ = open_checkpoint(folder)
    content.setdefault("model", config.model.model_dump(mode="json"))
    training, data = content.get("training"), content.get("data")
    if isinstance(training, dict):
        training.setdefault("noise_std", config.noise_std)
    if isinstance(data, dict) and config.autoencoder is not None:
        if (folder / AUTOENCODER).is_dir():
            data.setdefault("autoencoder", str(folder / AUTOENCODER))
        if "autoencoder" in data and "latent_scale" not in data and "latent_shift" not in data:
            data |= {"latent_scale": config.latent.scale, "latent_shift": config.latent.shift}
    return config


def load_start(flow: Flow, start: Start) -> None:
    """Load the weights of the checkpoint into a flow.

    Raises:
        CheckpointError: the weights are damaged, or not those of such a model.
    """
    _, tensors = open_checkpoint(start.checkpoint)
    flow.load_state_dict(tensors.load(flow))
