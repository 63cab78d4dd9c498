"""The autoencoder of a bundle: between the flow's data, which are scaled latents, and pixels."""

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import AutoencoderSpec, NetworkSpec
from starflow.runtime.networks.session import NetworkSession
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.errors import BackendError, UsageError


class Autoencoder:
    """Encoder and decoders, each opened when it is first needed.

    Args:
        bundle: The bundle.
        spec: Its autoencoder.
        provider, threads: See `NetworkSession`.
    """

    def __init__(self, bundle: Bundle, spec: AutoencoderSpec, *, provider: Provider = "cpu", threads: int = 0) -> None:
        self._bundle, self._spec = bundle, spec
        self._provider, self._threads = provider, threads
        self._sessions: dict[str, NetworkSession] = {}

    def close(self) -> None:
        """Free the sessions."""
        for session in self._sessions.values():
            session.close()

    def decode(self, data: NDArray[np.float32], *, noisy: bool) -> NDArray[np.float32]:
        """Pixels of data.

        Args:
            data: [N, C, h, w], data as the flow makes it. N may be any number.
            noisy: By the decoder that was trained on noisy latents.

        Returns:
            [N, 1 or 3, H, W], about [-1, 1].

        Raises:
            UsageError: data hold NaN or infinity, or there is no such decoder.
            BackendError: the decoder made a value that is not finite.
        """
        decoder = next((each for each in self._spec.decoders if (each.noise_std > 0) == noisy), None)
        if decoder is None:
            raise UsageError("this bundle holds no decoder trained on noisy latents; decode with denoise 'none'")
        if not np.isfinite(data).all():
            raise UsageError("latents hold NaN or infinite values; there is nothing to decode")
        image = self._bundle.manifest.image
        return self._run(decoder.network, data / np.float32(image.scale) + np.float32(image.shift), "decoder")

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Data of pixels [N, 1 or 3, H, W] in [-1, 1]: the mean where the encoder has a distribution.

        Raises:
            UsageError: the bundle holds no encoder.
            BackendError: the encoder made a value that is not finite.
        """
        if self._spec.encoder is None:
            raise UsageError("this bundle holds decoders alone; give data in a .npy file")
        image = self._bundle.manifest.image
        latents = self._run(self._spec.encoder, pixels, "encoder")
        return (latents - np.float32(image.shift)) * np.float32(image.scale)

    def _run(self, network: NetworkSpec, values: NDArray[np.float32], what: str) -> NDArray[np.float32]:
        """Run a network on N samples, in batches of the bundle; the last one is padded."""
        path = network.file.path
        if path not in self._sessions:
            self._sessions[path] = NetworkSession(self._bundle, network, provider=self._provider, threads=self._threads)
        (given,), (made,), batch = network.inputs, network.outputs, self._bundle.manifest.batch
        parts = []
        for _, index in batches(len(values), batch):
            parts.append(self._sessions[path].run({given.name: values[index]})[made.name])
        out: NDArray[np.float32] = np.concatenate(parts)[: len(values)]
        if not np.isfinite(out).all():
            raise BackendError(f"the {what} made NaN or infinite values; `starflow verify --hashes` checks its weights")
        return out
