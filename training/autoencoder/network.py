"""diffusers' autoencoders behind one interface: pixels to latents and back, whatever the class."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from starflow.runtime.plain.errors import CheckpointError, UsageError, first_line
from starflow.runtime.plain.install_hint import install_hint
from starflow.runtime.plain.json_text import read_json
from starflow.training.autoencoder.config import MOST_CHANNELS, MOST_STAGE_LAYERS, MOST_STAGES, KlConfig, TinyConfig

CLASSES = {"tiny": "AutoencoderTiny", "kl": "AutoencoderKL"}
DECODER_PARTS = ("decoder.", "post_quant_conv.")  # parameters between latent and pixels


class Autoencoder(nn.Module):
    """An AutoencoderTiny or AutoencoderKL.

    Pixels are float32 [B, 1 or 3, H, W] in [-1, 1]; latents float32 [B, C, h, w], neither scaled nor shifted.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    @property
    def variational(self) -> bool:
        """Whether the encoder predicts a distribution."""
        return type(self.network).__name__ == CLASSES["kl"]

    @property
    def pixel_channels(self) -> int:
        return int(self.network.config.in_channels)

    @property
    def latent_channels(self) -> int:
        return int(self.network.config.latent_channels)

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel, along one side."""
        config = self.network.config
        stages = config.block_out_channels if self.variational else config.encoder_block_out_channels
        return int(2 ** (len(stages) - 1))

    def latent_shape(self, pixel_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """[C, h, w] of an image [C, H, W]; UsageError if the autoencoder does not take it."""
        factor = self.factor
        channels, height, width = pixel_shape
        if channels != self.pixel_channels or height % factor or width % factor:
            raise UsageError(
                f"autoencoder: takes {self.pixel_channels} channel(s) and sides that are multiples of {factor},"
                f" found {channels} channel(s) of {width}x{height}"
            )
        return self.latent_channels, height // factor, width // factor

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the latent's distribution, [B, C, h, w] each; no variance if it is deterministic."""
        found = self.network.encode(pixels, return_dict=False)[0]
        return (found.mean, found.logvar) if self.variational else (found, None)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents: the mean of their distribution."""
        return self.posterior(pixels)[0]

    def decode(self, latent: Tensor) -> Tensor:
        pixels: Tensor = self.network.decode(latent, return_dict=False)[0]
        return pixels

    def forward(self, pixels: Tensor, noise: Tensor, noise_std: float) -> tuple[Tensor, Tensor]:
        """Reconstruct through noise: what training an autoencoder runs.

        Args:
            noise: Standard normal, shaped as its latents.
            noise_std: Noise that a flow will leave in latents of standard deviation 1. It is scaled to these latents, so
                that larger latents do not escape it. Under a bound on power, Gaussian latents carry the most information
                through Gaussian noise (Shannon, 1948), so training draws them to the flow's prior.

        Returns:
            The reconstruction, and nats per dimension of KL(latents || standard normal): of every image's distribution,
            or of the batch's mean and variance where the encoder is deterministic.
        """
        mean, log_variance = self.posterior(pixels)
        mean = mean.float()
        spread = mean.var()
        if log_variance is None:
            std = noise_std * spread.sqrt()
            kl = 0.5 * (mean.mean().square() + spread - 1 - spread.log())
        else:
            log_variance = log_variance.float()
            std = (log_variance.exp() + noise_std**2 * spread).sqrt()
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return self.decode(mean + std * noise).float(), kl


def _diffusers() -> Any:
    try:
        import diffusers
        from diffusers.utils import logging
    except ImportError:
        raise UsageError(f"autoencoders need the package diffusers: {install_hint('encoders')}") from None
    logging.set_verbosity_error()  # it warns about fields that it wrote itself
    return diffusers


def build_autoencoder(config: TinyConfig | KlConfig, pixel_channels: int) -> Autoencoder:
    """A fresh autoencoder; UsageError if diffusers is not installed."""
    return Autoencoder(getattr(_diffusers(), CLASSES[config.kind])(**config.settings(pixel_channels)))


def load_autoencoder(folder: Path) -> Autoencoder:
    """Read a diffusers folder, float32, in evaluation mode; nothing is fetched.

    Raises:
        CheckpointError: it does not hold an AutoencoderKL or AutoencoderTiny, or is damaged.
        UsageError: diffusers is not installed.
    """
    diffusers = _diffusers()
    expected = "an autoencoder is a diffusers folder with config.json and diffusion_pytorch_model.safetensors"
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        if not os.path.isfile(folder / file):
            raise CheckpointError(f"{folder}: has no {file}; {expected}")
    try:
        config = read_json(folder / "config.json")
    except OSError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error.strerror}; copy the folder again") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: is not JSON ({error}); copy the folder again") from None
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in CLASSES.values():
        raise CheckpointError(
            f"{folder}: holds {name or 'no diffusers model'}, expected {' or '.join(CLASSES.values())}"
        )
    try:
        _check_size(folder, config, getattr(diffusers, name))
        network = getattr(diffusers, name).from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # diffusers, safetensors and torch report damage by many types
        raise CheckpointError(f"{folder}: cannot be read as {name}: {first_line(error)}; {expected}") from error
    return Autoencoder(network).eval().requires_grad_(False)


def _check_size(folder: Path, config: dict[str, Any], network: Any) -> None:
    """See that the file holds as many numbers as the configuration describes, before memory is taken for them.

    Raises:
        CheckpointError: it does not, or the configuration names sizes that no autoencoder has.
    """
    for field, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        most = MOST_STAGE_LAYERS if "layers" in field or field.endswith("_blocks") else MOST_CHANNELS
        if len(numbers) > MOST_STAGES or any(isinstance(each, int) and each > most for each in numbers):
            raise CheckpointError(f"{folder / 'config.json'}: {field}: found {value!r:.60}, expected at most {most}")
    with torch.device("meta"):
        described = sum(parameter.numel() for parameter in network.from_config(config).parameters())
    with safe_open(folder / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        held = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    if described > held:
        raise CheckpointError(
            f"{folder}: config.json describes {described:,} parameters, the weights file holds {held:,}; copy it again"
        )


def decoder_state(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The parameters between latent and pixels, under diffusers' names."""
    state = autoencoder.network.state_dict()
    return {name: value for name, value in state.items() if name.startswith(DECODER_PARTS)}
