"""The autoencoder of a bundle: between pixels and the flow's data, which are scaled latents."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import AutoencoderSpec, NetworkSpec
from starflow.runtime.networks.network_runner import NetworkRunner
from starflow.runtime.plain.errors import NotFiniteError, UsageError


class Autoencoder(NetworkRunner):
    """Encoder and decoders of a bundle, described at each of its batch sizes."""

    def __init__(self, bundle: Bundle, sessions: NetworkSessions, *specs: AutoencoderSpec) -> None:
        super().__init__(sessions)
        self._specs = specs
        image = bundle.manifest.image
        self._scale, self._shift = np.float32(image.scale), np.float32(image.shift)

    def decode(self, data: NDArray[np.float32], *, noisy: bool) -> NDArray[np.float32]:
        """Turn data into pixels, [N, 1 or 3, H, W] in about [-1, 1].

        Args:
            data: [N, C, h, w] as the flow makes it. N may be any number.
            noisy: Whether to use the decoder that was trained on noisy latents.

        Raises:
            UsageError: the data contain NaN or infinity, or there is no such decoder.
            BackendError: the decoder produced NaN or infinity.
        """
        decoders = [each.network for spec in self._specs for each in spec.decoders if (each.noise_std > 0) == noisy]
        if not decoders:
            raise UsageError("this bundle has no decoder trained on noisy latents; decode with denoise 'none'")
        if not np.isfinite(data).all():
            raise UsageError("the latents contain NaN or infinity; there is nothing to decode")
        return self._finite(decoders, data / self._scale + self._shift, "decoder")

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn pixels [N, 1 or 3, H, W] in [-1, 1] into data; an encoder with a distribution gives its mean.

        Raises:
            UsageError: the bundle has no encoder.
            BackendError: the encoder produced NaN or infinity.
        """
        encoders = [spec.encoder for spec in self._specs if spec.encoder]
        if not encoders:
            raise UsageError("this bundle has decoders but no encoder; give data in a .npy file")
        return (self._finite(encoders, pixels, "encoder") - self._shift) * self._scale

    def _finite(self, networks: Sequence[NetworkSpec], values: NDArray[np.float32], what: str) -> NDArray[np.float32]:
        found = self.run(networks, {networks[0].inputs[0].name: values})
        if not np.isfinite(found).all():
            raise NotFiniteError(f"the {what} produced NaN or infinity; `starflow verify --hashes` checks its weights")
        return found
