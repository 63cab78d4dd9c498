"""`Sampler`: an open bundle that samples images."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.autoregressive.students import blocks_without_steps
from starflow.runtime.backends.base import Backend, Provider
from starflow.runtime.backends.choice import BackendName, onnxruntime_networks, open_backend
from starflow.runtime.batch_loops import BatchLoops
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.families import resolve_plan
from starflow.runtime.family import FamilyLoop, Inverted, OnBlock, OnPasses, Request
from starflow.runtime.networks.denoising import DENOISERS, Denoise, check_rate, choose_denoising
from starflow.runtime.networks.side_networks import SideNetworks
from starflow.runtime.noise import draw_noise
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.finite_array import finite_array
from starflow.runtime.plain.guidance import GuidanceOfImages, each_guidance
from starflow.runtime.plain.images import to_uint8
from starflow.runtime.plain.shared import Shared
from starflow.runtime.plans.decode_plan import DecodePlan, Jacobi, Students
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps

# "auto", "sequential", "student", "student+N", or a plan of the bundle's family; as text anything else is a file
Plan = DecodePlan | Jacobi | Students | FixedSteps | AdaptiveSteps | str | os.PathLike[str]

PIXEL_ROUNDING = 1e-3  # how far a pixel may lie outside [-1, 1]


class Sampler:
    """Samples images from a bundle, any number at a time.

    Example:
        >>> with Sampler.open("digits.bundle") as sampler:
        ...     images = sampler.sample([3, 1, 4], guidance=2.0, seed=7)

    A sampler keeps its buffers between calls. Threads that share one take turns, call by call; `twin` and `SamplerPool` run
    several at the same time. An exception, such as one that a callback raises to cancel a call, leaves the sampler as it was.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        backend: Backend,
        plan: Plan = "auto",
        *,
        provider: Provider = "cpu",
        threads: int = 0,
    ) -> None:
        with ExitStack() as stack:
            loops = stack.enter_context(closing(BatchLoops(bundle, variant, backend, plan)))
            sessions = backend.open_networks(lambda: onnxruntime_networks(bundle, provider, threads))
            self._start(bundle, variant, _Open(loops, Shared(SideNetworks(bundle, variant, sessions))))
            stack.pop_all()

    def _start(self, bundle: Bundle, variant: Variant, opened: "_Open") -> None:
        self.bundle, self.variant = bundle, variant
        self._open: _Open | None = opened
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Bundle,
        *,
        backend: BackendName = "auto",
        variant: str | None = None,
        plan: Plan = "auto",
        provider: Provider = "cpu",
        threads: int = 0,
        shape: tuple[int, int] | None = None,
        batch: int | None = None,
        verify: bool = False,
        revision: str | None = None,
    ) -> "Sampler":
        """Open a bundle.

        Args:
            path: The bundle's folder; `digits`, which comes with starflow; `org/name` or `org/name@revision` on the Hugging Face
                Hub, of which the files of the chosen variant, backend and shape are fetched; or a bundle that is open.
            backend: What runs the flow: `onnxruntime`, `tensorrt` (engines from `starflow build`, on a GPU), or `auto`, which
                takes TensorRT if there is a GPU and the bundle has engines for it, and ONNX Runtime otherwise. Engines are
                machine code, so `auto` leaves alone those of a bundle on the Hub. Beside a flow on TensorRT, text encoder,
                autoencoder and denoisers run on their engines too; ONNX Runtime runs those without one, which a warning says.
            variant: Name of a variant, such as `portable-fp32`; None takes the first one made for the backend. `auto` takes the
                fastest by the times that `starflow calibrate --weights` recorded, if they are of this processor; a quantised one
                has the error that the manifest states.
            plan: For an autoregressive flow `sequential`, a `DecodePlan` or its JSON file, or `Jacobi` chunks. For a
                continuous flow an integration plan or its JSON file. `auto` takes the plan that `starflow calibrate --plan`
                stored for this backend and variant; without one it decodes sequentially, or takes 16 steps of Heun's method.
                `student` makes every flow block that has a student in its one pass, which is not exact, and the others as
                `auto` does; `student+N` goes on from there by N passes of Jacobi iteration.
            provider: ONNX Runtime's execution provider: `cpu`, or on a GPU `cuda` or `tensorrt`.
            threads: Threads within an operator on the CPU. 0 measures for each flow block whether one or all cores are faster.
            shape: Height and width of the data, for a bundle with several shapes; None takes the default shape.
            batch: The one batch size to run, for a bundle with several; None takes for each part of the images the smallest one
                that holds it, see `generate`.
            verify: Whether to compare every file with its digest first, which reads all of them. Without it sizes are
                compared, and the digests of what is small: the manifest, graphs and the tokenizer, but not the weights. What is
                fetched from the Hub is always compared.
            revision: Branch, tag or commit of a bundle on the Hub.

        Raises:
            BundleError: the bundle is damaged, of a newer schema, or lacks the variant.
            BackendError: the backend cannot run here. It never falls back to another device.
            UsageError: there is no such bundle, the plan does not fit it, or it has no such shape or batch size.
        """
        bundle = (path if isinstance(path, Bundle) else Bundle.open(path, revision)).at_shape(shape)
        if batch is not None:
            bundle = bundle.at_batch(batch)
        if verify:
            bundle.verify_hashes()
        plan = resolve_plan(bundle.manifest, plan) or "auto"  # a wrong one is refused before anything is loaded
        unused = blocks_without_steps(bundle.manifest, plan)
        chosen, opened = open_backend(
            bundle, backend, variant=variant, provider=provider, threads=threads, unused=unused
        )
        return cls(bundle, chosen, opened, plan, provider=provider, threads=threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free sessions and buffers, when a call of another thread is over; a second call does nothing.

        Raises:
            UsageError: it is called by a callback of this sampler.
        """
        with self._lock:
            if self._open:
                self._open.check_idle()
                self._open.shared_networks.close()
                self._open.loops.close()
                self._open, self.bundle = None, self.bundle.released()

    def load(self) -> None:
        """Load every graph of the flow now, not when it is first needed.

        Raises:
            BundleError, BackendError: one of them cannot be loaded.
        """
        with self._turn() as running:
            running.loop.load()

    def twin(self) -> "Sampler":
        """A second sampler with the same plan over the same weights, with buffers of its own, for another thread.

        The weights are freed when the last twin is closed.

        Raises:
            BackendError: memory does not suffice for another set of buffers.
        """
        with self._turn() as running:
            loops = running.loops.twin()
            made = object.__new__(type(self))
            made._start(self.bundle, self.variant, _Open(loops, running.shared_networks.joined()))
            return made

    @contextmanager
    def _turn(self) -> Iterator["_Open"]:
        """Wait until no other thread uses this sampler, and keep it until the end."""
        with self._lock:
            yield self._running

    @property
    def _running(self) -> "_Open":
        if self._open is None:
            raise UsageError("this sampler is closed; open the bundle again with Sampler.open")
        return self._open

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def backend(self) -> Backend:
        """The backend that runs the flow, in batches of the largest size, for measurements."""
        return self._running.loops.largest.backend

    @property
    def plan(self) -> DecodePlan | FixedSteps | AdaptiveSteps:
        """The decode plan or integration plan in use, that of the largest batch size; a plan that does not fit cannot be set."""
        return self._running.loop.plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        with self._turn() as running:
            running.check_idle()
            running.loops.follow(plan)

    @property
    def decoding(self) -> str:
        """The plan in a few words."""
        return self._running.loops.decoding

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one image's noise: that of the data, or [T, D] for TARFlow."""
        return self._running.loop.noise_shape

    def noise(
        self, count: int, seed: int | Sequence[int] = 0, temperature: float = 1.0, *, first: int = 0
    ) -> NDArray[np.float32]:
        """Normal noise [count, *noise_shape].

        Args:
            count: Number of images.
            seed: One seed >= 0, with which the noise of image i depends on the seed and i only; or a seed for each image,
                whose noise is that of image `first` of its seed.
            temperature: Standard deviation > 0 of the noise. Below 1, images are more alike and closer to the mode.
            first: Number of the first image: the noise is that of images `first` to `first + count - 1` of the seed.

        Raises:
            UsageError: a number is out of its range, there are not as many seeds as images, or memory does not hold the noise.
        """
        return draw_noise(self.noise_shape, count, seed, temperature, first)

    def generate(
        self,
        noise: ArrayLike,
        condition: ArrayLike | Sequence[str] | None = None,
        null_condition: ArrayLike | None = None,
        *,
        guidance: GuidanceOfImages = 0.0,
        attention_temperature: float = 1.0,
        denoise: Denoise = "auto",
        denoising_rate: float = 1.0,
        on_block: OnBlock | None = None,
        on_passes: OnPasses | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Turn noise into data, deterministically.

        Args:
            noise: [N, *noise_shape] float32, standard normal. N may be any number: images run in batches of the exported
                size, the last one padded. If there are several sizes, each batch has the smallest that holds all images that
                are left, or the largest if none does.
            condition: Labels [N] (numbers or class names), captions [N], or condition tokens [N, m, width]. A single one
                applies to all images. Without a condition, class models get the null class and text models the empty caption.
            null_condition: Null condition tokens, for guided models conditioned on features. A bundle with a text encoder
                uses the features of the empty caption.
            guidance: Weight w >= 0, or a `Guidance`; one for all images, or one for each.
            attention_temperature: STARFlow divides all attention logits by it, TARFlow those of its unguided branch. A value
                other than 1 needs a bundle exported with `--attention-temperature`.
            denoise: How to remove the noise that training added to the data: by the model's `score`, by the `learned`
                denoiser, by the `decoder` (in `to_images`), or `none`. `auto` takes `decoder` if the bundle has a decoder
                trained on noisy latents, and `none` otherwise.
            denoising_rate: Fraction of the denoising step that `score` and `learned` take, 1 for the whole step.
            on_block: Called after each flow block with its index and its output [n, C, H, W], batch by batch. A continuous
                flow counts as block 0.
            on_passes: Called after each flow block with its index and the number of passes of its network, prefill not
                counted.
            progress: Called with the work done and the work in total: tokens, or parts of the way from noise to data. At most 16
                tokens or passes lie between two calls, so an exception raised here cancels the call within that time.

        Returns:
            [N, C, H, W] float32 (points: [N, D]): data as in training, with latent scaling still applied.

        Raises:
            UsageError: an argument does not fit the bundle.
            BackendError: a flow block produced NaN or infinity.
            IntegrationError: the integration diverged.
        """
        with self._turn() as running, running.busy():
            manifest, loop, beside = self.manifest, running.loop, running.beside
            z = finite_array(noise, loop.noise_shape, "noise")
            count = len(z)
            guided = each_guidance(guidance, count)
            request = Request(guided, attention_temperature, on_block, on_passes, beside.run)
            loop.check(request)
            denoise = choose_denoising(manifest, denoise)
            check_rate(denoising_rate)
            any_guided = any(each.weight > 0 for each in guided)
            conditions = beside.conditions(count, condition, null_condition, guided=any_guided)
            parts = batches(count, *running.loops.sizes)
            done = 0

            def report(work: int) -> None:
                nonlocal done
                done += work
                if progress:
                    progress(done, len(parts) * loop.work)

            out = np.empty((count, *manifest.model.data_shape), np.float32)
            for part, index in parts:
                of_part = replace(request, guidance=[guided[image] for image in index])
                x = running.loops.of(len(index)).run(
                    z[index], conditions.part(index), of_part, part.stop - part.start, report
                )
                out[part] = x[: part.stop - part.start]
            return beside.denoise(out, conditions, denoise, denoising_rate) if denoise in DENOISERS else out

    def check(
        self,
        count: int,
        condition: ArrayLike | Sequence[str] | None = None,
        null_condition: ArrayLike | None = None,
        *,
        guidance: GuidanceOfImages = 0.0,
        denoise: Denoise = "auto",
    ) -> None:
        """See that `generate` takes these arguments for so many images, without running anything or waiting for a thread.

        Captions are not encoded.

        Raises:
            UsageError: one of them does not fit the bundle.
        """
        running, manifest = self._running, self.manifest
        guided = each_guidance(guidance, count)
        running.loop.check(Request(guided))
        choose_denoising(manifest, denoise)
        any_guided = any(each.weight > 0 for each in guided)
        running.beside.check(count, condition, null_condition, guided=any_guided)

    def denoise(
        self,
        x: ArrayLike,
        condition: ArrayLike | Sequence[str] | None = None,
        *,
        how: Denoise = "auto",
        rate: float = 1.0,
    ) -> NDArray[np.float32]:
        """Remove the noise that training added to the data from samples.

        Args:
            x: [N, C, H, W] float32, data as in training.
            condition: The condition of the samples, see `generate`. Guidance plays no part.
            how: See `denoise` of `generate`; `none` and `decoder` return x.
            rate: Fraction of the denoising step, 1 for the whole step.

        Raises:
            UsageError: the bundle has no such denoiser, or an argument does not fit it.
            BackendError: the result is not finite.
        """
        with self._turn() as running:
            manifest, beside = self.manifest, running.beside
            how = choose_denoising(manifest, how)
            check_rate(rate)
            data = finite_array(x, manifest.model.data_shape, "data")
            if how not in DENOISERS:
                return data
            return beside.denoise(data, beside.conditions(len(data), condition), how, rate)

    def invert(
        self,
        x: ArrayLike,
        condition: ArrayLike | Sequence[str] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Inverted:
        """Find the noise that `generate` turns into the given data, without guidance, and the density of the data.

        Args:
            x: [N, C, H, W] float32, data as in training. N may be any number.
            condition: See `generate`.
            progress: Called with images done and in total.

        Raises:
            UsageError: an argument does not fit the bundle, or the bundle is a continuous flow.
            BackendError: a flow block produced NaN or infinity.
        """
        found: list[Inverted] = []
        with self._turn() as running, running.busy():
            data = finite_array(x, self.manifest.model.data_shape, "data")
            count = len(data)
            conditions = running.beside.conditions(count, condition)
            for part, index in batches(count, *running.loops.sizes):
                found.append(running.loops.of(len(index)).invert(data[index], conditions.part(index)))
                if progress:
                    progress(part.stop, count)
        noise, likelihood, determinant = (
            np.concatenate([getattr(inverted, name) for inverted in found])[:count]
            for name in ("noise", "log_likelihood", "log_determinant")
        )
        return Inverted(noise, likelihood, determinant)

    def sample(
        self,
        condition: ArrayLike | Sequence[str] | None = None,
        null_condition: ArrayLike | None = None,
        *,
        count: int | None = None,
        guidance: GuidanceOfImages = 0.0,
        denoise: Denoise = "auto",
        denoising_rate: float = 1.0,
        seed: int | Sequence[int] = 0,
        temperature: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.uint8]:
        """Sample images.

        Args:
            condition: Labels, captions or condition tokens, see `generate`.
            null_condition: See `generate`.
            count: Number of images (default: one for each condition, or for each seed).
            guidance: Weight w >= 0, or a `Guidance`; one for all images, or one for each.
            denoise, denoising_rate: See `generate`.
            seed, temperature: See `noise`. An image depends only on its noise, condition and guidance, not on the other images or on how
                they are split into batches. (With `Jacobi` this holds up to its threshold, since a batch iterates until all of
                its images have converged; and between batches of different sizes it holds up to rounding.)
            progress: See `generate`.

        Returns:
            [N, H, W, C] uint8.
        """
        self._check_images()
        if count is None:
            count = max(_implied_count(condition), np.size(seed))
        x = self.generate(
            self.noise(count, seed, temperature),
            condition,
            null_condition,
            guidance=guidance,
            denoise=denoise,
            denoising_rate=denoising_rate,
            progress=progress,
        )
        return self.to_images(x, denoise=denoise)

    def encode_captions(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Condition tokens [N, m, width] of N captions.

        Raises:
            UsageError: the bundle has no text encoder, or the tokenizers library is not installed.
        """
        with self._turn() as running:
            return running.beside.captions.encode(captions)

    def to_images(self, x: ArrayLike, *, denoise: Denoise = "auto") -> NDArray[np.uint8]:
        """Turn data [N, C, H, W] into pixels [N, H, W, C] uint8; latents go through the decoder.

        Args:
            x: Output of `generate`, float32.
            denoise: The value given to `generate`: `decoder` takes the decoder trained on noisy latents, every other value
                the plain one.

        Raises:
            UsageError: the bundle lacks the decoder that x needs, or x does not fit.
            BackendError: the decoder produced NaN or infinity.
        """
        with self._turn() as running:
            manifest = self.manifest
            self._check_images()
            how = choose_denoising(manifest, denoise)
            data = finite_array(x, manifest.model.data_shape, "data")
            if manifest.autoencoder:
                decoder = running.beside.autoencoder
                return to_uint8(decoder.decode(data, noisy=how == "decoder"))
            return to_uint8(data / manifest.image.scale + manifest.image.shift)

    def encode_images(self, pixels: ArrayLike) -> NDArray[np.float32]:
        """Turn pixels [N, 1 or 3, H, W] in [-1, 1] into data [N, C, h, w]; images of a latent model go through the encoder.

        Raises:
            UsageError: the bundle lacks an encoder for its latents, or the images have another size or values outside [-1, 1].
            BackendError: the encoder produced NaN or infinity.
        """
        manifest = self.manifest
        values = finite_array(pixels, self.pixel_shape, "pixels")
        if np.abs(values).max() > 1 + PIXEL_ROUNDING:
            low, high = values.min(), values.max()
            raise UsageError(
                f"pixels range from {low:g} to {high:g}, expected -1 to 1; for 8-bit images give pixels / 127.5 - 1"
            )
        if manifest.autoencoder:
            with self._turn() as running:
                return running.beside.autoencoder.encode(values)
        return (values - np.float32(manifest.image.shift)) * np.float32(manifest.image.scale)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the images that the bundle makes.

        Raises:
            UsageError: it makes no images.
        """
        manifest = self.manifest
        if not manifest.autoencoder:
            self._check_images()
        channels, height, width = manifest.output_shape
        return channels, height, width

    def _check_images(self) -> None:
        output = self.manifest.output
        if output != "images":
            without = " without a decoder" if output == "latents" else ""
            raise UsageError(f"this bundle makes {output}{without}, not images; generate() returns them as an array")


@dataclass
class _Open:
    """What an open sampler owns."""

    loops: BatchLoops
    shared_networks: Shared[SideNetworks]
    is_busy: bool = False  # whether the buffers of the flow are in use

    @property
    def beside(self) -> SideNetworks:
        return self.shared_networks.resource

    @property
    def loop(self) -> FamilyLoop:
        """The loop of the largest batch size."""
        return self.loops.largest.loop

    def check_idle(self) -> None:
        """See that the one who calls is no callback, whose call still needs the buffers."""
        if self.is_busy:
            raise UsageError(
                "this sampler is in the midst of a call; raise an exception to cancel it, and use a twin to sample meanwhile"
            )

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Use the buffers of the flow."""
        self.check_idle()
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False


def _implied_count(condition: ArrayLike | Sequence[str] | None) -> int:
    shape = np.shape(condition) if condition is not None else ()
    return max(shape[0], 1) if len(shape) in (1, 3) else 1  # an empty list is refused where it is read
