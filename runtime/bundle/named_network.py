"""The networks of a bundle beside the flow, by the names that `starflow build --networks` takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_spec import NetworkSpec

NetworkName = Literal["text-encoder", "encoder", "decoder", "noisy-decoder", "score", "learned", "student"]
NETWORK_NAMES: tuple[NetworkName, ...] = get_args(NetworkName)


@dataclass(frozen=True)
class NamedNetwork:
    """One network, at one shape and batch size."""

    name: NetworkName
    spec: NetworkSpec
    precision: str | None = None  # of the weights of a denoiser, of which there may be several; None for other networks
    block: int | None = None  # the flow block of a student; None for other networks

    @property
    def words(self) -> str:
        """What messages call it, such as `noisy decoder`, `denoiser score-fp16` or `student of flow block 3`."""
        if self.block is not None:
            return f"student of flow block {self.block}"
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
    if isinstance(manifest, AutoregressiveManifest):
        for student in manifest.students:
            yield NamedNetwork("student", student.network, block=student.block)
