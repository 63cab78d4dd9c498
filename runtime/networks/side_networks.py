"""The networks of a bundle beside the flow: text encoder, autoencoder and denoisers, each opened when it is first needed."""

from collections.abc import Sequence

from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.network_spec import AutoencoderSpec
from starflow.runtime.conditions import Conditions, encode_conditions
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.networks.caption_encoder import CaptionEncoder, as_captions, text_of
from starflow.runtime.networks.denoising import Denoiser, Denoising, choose_denoiser


class SideNetworks:
    """What a sampler runs before and after the flow, on ONNX Runtime.

    Args:
        bundle: The bundle.
        variant: The variant its flow runs in, which a denoiser is chosen for.
        provider: ONNX Runtime's execution provider.
        threads: Threads within an operator on the CPU; 0 leaves the choice to ONNX Runtime.
    """

    def __init__(self, bundle: Bundle, variant: Variant, provider: Provider, threads: int) -> None:
        self._bundle, self._variant, self._provider, self._threads = bundle, variant, provider, threads
        self._captions: CaptionEncoder | None = None
        self._autoencoder: Autoencoder | None = None
        self._denoisers: dict[Denoising, Denoiser] = {}

    def close(self) -> None:
        """Free those that were opened."""
        opened: list[CaptionEncoder | Autoencoder | Denoiser | None] = [
            self._captions,
            self._autoencoder,
            *self._denoisers.values(),
        ]
        for network in opened:
            if network:
                network.close()

    @property
    def captions(self) -> CaptionEncoder:
        """The text encoder.

        Raises:
            UsageError: the bundle holds none, or the tokenizers library is not installed.
        """
        if self._captions is None:
            text = text_of(self._bundle)
            self._captions = CaptionEncoder(self._bundle, text, provider=self._provider, threads=self._threads)
        return self._captions

    def autoencoder(self, spec: AutoencoderSpec) -> Autoencoder:
        """The bundle's autoencoder."""
        if self._autoencoder is None:
            self._autoencoder = Autoencoder(self._bundle, spec, provider=self._provider, threads=self._threads)
        return self._autoencoder

    def conditions(
        self,
        count: int,
        condition: ArrayLike | Sequence[str] | None,
        null_condition: ArrayLike | None = None,
        *,
        guided: bool = False,
    ) -> Conditions:
        """What the caller says of N images as the graphs take it; captions are encoded, and so is the empty one.

        Args:
            count: N.
            condition, null_condition: See `Sampler.generate`.
            guided: Whether guidance is on.

        Raises:
            UsageError: the condition does not fit the model.
        """
        manifest = self._bundle.manifest
        if manifest.conditioning.kind == "features":
            captions = as_captions(condition)
            if captions is not None:
                condition = self.captions.encode(captions)
            if manifest.text and condition is None:
                condition = self.captions.null
            if manifest.text and null_condition is None and guided:
                null_condition = self.captions.null
        return encode_conditions(manifest.conditioning, count, condition, null_condition, guided=guided)

    def denoise(self, data: NDArray, conditions: Conditions, how: Denoising, rate: float) -> NDArray:
        """Take the training noise out of data [N, C, H, W] by the denoiser `how`.

        Raises:
            UsageError: the bundle has no such denoiser.
            BackendError: the result is not finite.
        """
        if how not in self._denoisers:
            spec = choose_denoiser(self._bundle.manifest, how, self._variant)
            self._denoisers[how] = Denoiser(self._bundle, spec, provider=self._provider, threads=self._threads)
        return self._denoisers[how](data, conditions, rate)
