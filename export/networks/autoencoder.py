"""The autoencoder of a latent model as graphs: pixels to latents, and latents back by one decoder or two."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from starflow.export.bundle_folder import BundleFolder
from starflow.export.graph_size import GraphSize
from starflow.export.onnx_graph.network_weights import Tensors
from starflow.export.onnx_graph.traced_graph import trace
from starflow.runtime.bundle.network_spec import AutoencoderSpec, DecoderSpec
from starflow.runtime.plain.errors import ExportError, UsageError
from starflow.training.autoencoder.folder import WEIGHTS, open_autoencoder
from starflow.training.autoencoder.network import Autoencoder
from starflow.training.checkpoint import AUTOENCODER
from starflow.training.config import CheckpointConfig


class AutoencoderExporter:
    """Writes the autoencoder of a bundle.

    Args:
        folder: A diffusers folder of an AutoencoderKL or AutoencoderTiny.
        config: Says how the checkpoint's latents are scaled.
        channels: Channels of the flow's data.

    Raises:
        CheckpointError: the folder cannot be read.
        ExportError: it has other latents than the flow.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, channels: int) -> None:
        found = open_autoencoder(folder)
        plain = found.autoencoder
        if plain.latent_channels != channels:
            raise ExportError(
                f"{folder}: its latents have {plain.latent_channels} channels, but the flow's data have {channels}; "
                "name the autoencoder that the flow was trained with: --autoencoder FOLDER"
            )
        if plain.pixel_channels not in (1, 3):
            raise ExportError(f"{folder}: its images have {plain.pixel_channels} channels, expected 1 or 3")
        self._plain = plain
        self._networks = nn.ModuleDict({"autoencoder": plain})
        self._noise = {"autoencoder": 0.0}
        if found.noisy is not None and found.record is not None and found.record.noisy_decoder_std is not None:
            self._networks["noisy_decoder"] = found.noisy
            # Stated at the scale of the autoencoder's own training; a bundle's data may be scaled otherwise.
            self._noise["noisy_decoder"] = (
                found.record.noisy_decoder_std / found.record.latent.scale * config.latent.scale
            )
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        self._dtype = np.dtype(np.float16 if types == {"F16"} else np.float32)

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """What the decoders' pixels are."""
        return "L" if self._plain.pixel_channels == 1 else "RGB"

    @property
    def steps(self) -> int:
        """What `write` reports for every size."""
        return 2 * (1 + len(self._networks))

    def write(self, folder: BundleFolder, sizes: Mapping[str, GraphSize]) -> list[AutoencoderSpec]:
        """Write graphs of every size over one file of weights.

        Weights are stored in the type of the folder; the graphs compute in float32.

        `sizes` are those of the latents, by what the names of their graphs end in.
        """
        graphs: dict[str, list[onnx.ModelProto]] = {}
        with folder.shared_weights("autoencoder", self._tensors()) as weights:
            for suffix, size in sizes.items():
                folder.step("encoder")
                pixels = torch.zeros(size.batch, *self._pixel_shape(size))
                encoder = trace("encoder", self._plain, Autoencoder.encode, {"pixels": pixels}, "latent")
                graphs[suffix] = [encoder.over(weights, prefix="autoencoder.")]
                folder.step("decoder")
                latent = torch.zeros(size.batch, *size.data_shape)
                decoder = trace("decoder", self._plain, Autoencoder.decode, {"latent": latent}, "pixels")
                graphs[suffix].append(decoder.over(weights, prefix="autoencoder."))
                if "noisy_decoder" in self._networks:  # of the same architecture
                    folder.step("noisy decoder")
                    graphs[suffix].append(decoder.over(weights, "noisy_decoder", "noisy_decoder."))
        file = folder.file(weights.file.path)
        specs = []
        for suffix, size in sizes.items():
            first, *others = (folder.network(g, file, f"{g.graph.name}.fp32{suffix}") for g in graphs[suffix])
            decoders = tuple(
                DecoderSpec(network=network, noise_std=noise)
                for network, noise in zip(others, self._noise.values(), strict=True)
            )
            specs.append(AutoencoderSpec(encoder=first, decoders=decoders, pixel_shape=self._pixel_shape(size)))
        return specs

    def _pixel_shape(self, size: GraphSize) -> tuple[int, int, int]:
        """[C, H, W] of the images of latents."""
        height, width = (side * self._plain.factor for side in size.data_shape[1:])
        return self._plain.pixel_channels, height, width

    def _tensors(self) -> Tensors:
        def stored(value: Tensor) -> Callable[[], NDArray]:
            return lambda: value.detach().numpy().astype(self._dtype)

        return {name: stored(value) for name, value in self._networks.state_dict().items()}


def find_autoencoder(
    checkpoint: Path, config: CheckpointConfig, data_shape: tuple[int, ...], asked: str | None
) -> AutoencoderExporter | None:
    """The autoencoder of a checkpoint: the one asked for, or the one in its folder.

    `data_shape` is [C, h, w], or [D] of points; `asked` is a folder, `none`, or None. Returns None where data are pixels or
    points, or where `none` was asked for.

    Raises:
        CheckpointError, ExportError: the autoencoder is not there, or does not fit.
        UsageError: the model makes no latents.
    """
    if asked == "none":
        return None
    inside = checkpoint / AUTOENCODER
    if asked is None and config.autoencoder is None and not inside.is_dir():
        return None
    if len(data_shape) != 3 or (config.autoencoder is None and config.image.mode != "latent"):
        raise UsageError(
            f"--autoencoder {asked or inside}: the data of this model are {config.image.mode} images or points, not latents"
        )
    if asked is None and not inside.is_dir():
        raise ExportError(
            f"{checkpoint}: its data are latents, but it has no {AUTOENCODER}/ to decode them; "
            "name one with --autoencoder, or export without: --autoencoder none"
        )
    return AutoencoderExporter(Path(asked) if asked else inside, config, data_shape[0])
