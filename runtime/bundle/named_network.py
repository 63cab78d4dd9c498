"""The networks of a bundle beside the flow, by the names that `starflow build --networks` takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_spec import NetworkSpec

NetworkName = Literal["text-encoder", "encoder", "decoder", "noisy-decoder", "score", "learned"]
NETWORK_NAMES: tuple[NetworkName, ...] = get_args(NetworkName)


@dataclass(frozen=True)
class NamedNetwork:
    """One network, at one shape and batch size."""

    name: NetworkName
    spec: NetworkSpec
    precision: str | None = None  # of the weights of a denoiser, of which there may be several; None for other networks

    @property
    def words(self) -> str:
        """What messages call it, such as `noisy decoder` or `denoiser score-fp16`."""
        return f"denoiser {self.name}-{self.precision}" if self.precision else self.name.replace("-", " ")


def networks_of(manifest: Manifest) -> Iterator[NamedNetwork]:
    """The networks of a manifest at its own shape and batch size."""
    if manifest.text:
        yield NamedNetwork("text-encoder", manifest.text.encoder)
    if manifest.autoencoder:
        if manifest.autoencoder.encoder:
            yield NamedNetwork("encoder", manifest.autoencoder.encoder)
        for decoder in manifest.autoencoder.decoders:
            yield NamedNetwork("noisy-decoder" if decoder.noise_std else "decoder", decoder.network)
    for denoiser in manifest.denoisers:
        yield NamedNetwork(denoiser.kind, denoiser.network, denoiser.precision)
