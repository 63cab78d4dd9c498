"""The networks of a bundle beside the flow: text encoder, autoencoder, denoisers and students, each opened when it is first needed."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.conditions import Conditions, encode_conditions
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.networks.caption_encoder import CaptionEncoder, as_captions, check_captions, text_of
from starflow.runtime.networks.denoising import Denoiser, Denoising, choose_denoiser
from starflow.runtime.networks.network_runner import NetworkRunner
from starflow.runtime.plain.errors import UsageError

Runner = TypeVar("Runner", bound=NetworkRunner)


class SideNetworks:
    """What samplers run before and after the flow, and in place of flow blocks.

    The variant decides between denoisers of several precisions.

    It owns `sessions`. Several threads may use it at the same time.
    """

    def __init__(self, bundle: Bundle, variant: Variant, sessions: NetworkSessions) -> None:
        self._bundle, self._variant, self._sessions = bundle, variant, sessions
        self._at_sizes = [bundle.manifest.at_batch(batch) for batch in bundle.manifest.batch_sizes]
        self._opened: dict[str, NetworkRunner] = {}
        self._opening = threading.Lock()

    def run(self, network: NetworkSpec, inputs: Mapping[str, NDArray]) -> NDArray:
        """The output of a network for one batch of an exported size; see `NetworkSessions.run`."""
        return self._sessions.run(network, inputs)

    def close(self) -> None:
        """Free the networks that were opened."""
        self._sessions.close()

    @property
    def captions(self) -> CaptionEncoder:
        """The text encoder; UsageError if the bundle has none, or the tokenizers library is not installed."""
        return self._open("captions", CaptionEncoder, text_of(self._bundle))

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, of a bundle that has one."""
        return self._open("autoencoder", Autoencoder, *(each.autoencoder for each in self._at_sizes))

    def conditions(
        self,
        count: int,
        condition: ArrayLike | Sequence[str] | None,
        null_condition: ArrayLike | None = None,
        *,
        guided: bool = False,
    ) -> Conditions:
        """Conditions as of `Sampler.generate`, as the graphs take them; UsageError if they do not fit the model."""
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

    def check(
        self,
        count: int,
        condition: ArrayLike | Sequence[str] | None,
        null_condition: ArrayLike | None = None,
        *,
        guided: bool = False,
    ) -> None:
        """Raise the UsageError of `conditions`, but encode no caption."""
        manifest = self._bundle.manifest
        given, captions = manifest.conditioning, as_captions(condition)
        if given.kind == "features" and (captions is not None or (manifest.text and condition is None)):
            text_of(self._bundle)
            check_captions(captions or [])
            if len(captions or [""]) not in (1, count):
                raise UsageError(
                    f"{len(captions or [])} captions for {count} images; give one for all, or one for each"
                )
        else:
            has_null = manifest.text is not None
            encode_conditions(given, count, condition, null_condition, guided=guided and not has_null)

    def denoise(self, data: NDArray, conditions: Conditions, how: Denoising, rate: float) -> NDArray:
        """Remove the noise of training from data [N, C, H, W] by the denoiser `how`; see `Denoiser`."""
        specs = [choose_denoiser(each, how, self._variant) for each in self._at_sizes]
        return self._open(how, Denoiser, *specs)(data, conditions, rate)

    def _open(self, name: str, kind: Callable[..., Runner], *specs: object) -> Runner:
        with self._opening:
            if name not in self._opened:
                self._opened[name] = kind(self._bundle, self._sessions, *specs)
            return cast(Runner, self._opened[name])
