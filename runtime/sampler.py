"""`Sampler`: a bundle, ready to sample."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file

from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.choice import BackendName, Provider, open_backend
from starflow.runtime.bundle import Bundle
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.decode_plan import DecodePlan, Jacobi, read_plan
from starflow.runtime.errors import BundleError, UsageError
from starflow.runtime.guidance import Guidance
from starflow.runtime.images import to_uint8
from starflow.runtime.manifest import Manifest, Variant
from starflow.runtime.sampling_loop import SEQUENTIAL, sample_batch
from starflow.runtime.tokens import patchify, unpatchify

# "auto", "sequential", or a plan; as text anything else is a file
Plan = DecodePlan | Jacobi | str | os.PathLike[str]


class Sampler:
    """Samples images from a bundle, any number at a time.

    Example:
        >>> with Sampler.open("digits.bundle") as sampler:
        ...     images = sampler.sample([3, 1, 4], guidance=2.0, seed=7)

    A sampler keeps its buffers between calls and serves one thread.

    Attributes:
        plan: How tokens are decoded.
    """

    def __init__(self, bundle: Bundle, variant: Variant, backend: Backend, plan: Plan = "auto") -> None:
        self.bundle, self.variant, self._backend = bundle, variant, backend
        stored = bundle.manifest.plan_for(backend.name, variant.name)
        self.plan = _resolve(plan, bundle.manifest) or (stored.plan if stored else SEQUENTIAL)
        self._deviation = _prior_deviation(bundle)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: BackendName = "auto",
        variant: str | None = None,
        plan: Plan = "auto",
        provider: Provider = "cpu",
        threads: int = 0,
    ) -> "Sampler":
        """Open a bundle.

        Args:
            path: The bundle's folder.
            backend: What runs it: `onnxruntime`, `tensorrt` (engines made by `starflow build`, on a GPU), or `auto`: TensorRT
                where there is a GPU and the bundle has engines for it, else ONNX Runtime.
            variant: Name of a variant, such as `portable-fp32`; None takes the first one made for the backend.
            plan: How tokens are decoded: `sequential`, a `DecodePlan` or its JSON file, `Jacobi` chunks; or `auto`, the plan
                that `starflow calibrate --plan` stored for this backend and variant, else sequential.
            provider: ONNX Runtime's execution provider: `cpu`, or on a GPU `cuda` or `tensorrt`.
            threads: Threads within an operator on the CPU; 0 takes one per physical core.

        Raises:
            BundleError: the bundle is damaged, of a newer schema, or lacks the variant.
            BackendError: the backend cannot run here. There is no falling back to another device.
            UsageError: the plan does not fit the bundle.
        """
        bundle = Bundle.open(path)
        plan = _resolve(plan, bundle.manifest) or "auto"
        chosen, opened = open_backend(bundle, backend, variant=variant, provider=provider, threads=threads)
        return cls(bundle, chosen, opened, plan)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free sessions and buffers."""
        self._backend.__exit__(None, None, None)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def backend(self) -> Backend:
        """The backend, for measurements."""
        return self._backend

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one image's noise: [C, H, W], or [T, D] for TARFlow."""
        model = self.manifest.model
        return model.data_shape if model.noise_layout == "image" else (model.tokens, model.token_dim)

    def noise(self, count: int, seed: int = 0) -> NDArray[np.float32]:
        """Standard normal noise [count, *noise_shape]; image i depends on (seed, i) only."""
        if count < 1 or seed < 0:
            raise UsageError(f"{count} images with seed {seed}: give at least one image and a seed >= 0")
        draw = (
            np.random.default_rng([seed, index]).standard_normal(self.noise_shape, np.float32) for index in range(count)
        )
        return np.stack(list(draw))

    def generate(
        self,
        noise: ArrayLike,
        condition: ArrayLike | Sequence[str] | None = None,
        null_condition: ArrayLike | None = None,
        *,
        guidance: float | Guidance = 0.0,
        attention_temperature: float = 1.0,
        on_block: Callable[[int, NDArray], None] | None = None,
        on_passes: Callable[[int, int], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Turn noise into data, deterministically.

        Args:
            noise: [N, *noise_shape] float32, standard normal. N may be any number: it is split into the exported batch,
                the last part padded.
            condition: Labels [N] (numbers or class names), or condition tokens [N, m, width]; one for all is repeated.
            null_condition: Null condition tokens, for guided models conditioned on features.
            guidance: Weight w >= 0, or a `Guidance`.
            attention_temperature: STARFlow divides all attention logits by it, TARFlow those of its unguided branch. Only
                bundles exported with `--attention-temperature` take another value than 1.
            on_block: Called after each flow block with its index and its output [n, C, H, W], one part of N at a time.
            on_passes: Called after each flow block with its index and how often its network ran for that part, prefill
                apart.
            progress: Called with tokens done and in total, over all blocks and parts.

        Returns:
            [N, C, H, W] float32: data as the model was trained on, before latent scaling is undone.

        Raises:
            UsageError: an argument does not fit the bundle.
            BackendError: a block produced a value that is not finite.
        """
        manifest = self.manifest
        guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        self._check_guidance(guidance)
        if attention_temperature != 1.0 and not manifest.attention_temperature:
            raise UsageError("this bundle has no attention temperature; export it with --attention-temperature")
        if not attention_temperature > 0:
            raise UsageError(f"attention temperature {attention_temperature}: give a number > 0")
        tokens = self._noise_tokens(noise)
        count, batch = len(tokens), manifest.batch
        conditions = encode_conditions(
            manifest.conditioning, count, condition, null_condition, guided=guidance.weight > 0
        )
        starts = range(0, count, batch)
        report = _Progress(
            progress, len(starts) * sum(manifest.model.tokens for b in manifest.blocks if not b.identity)
        )
        out = np.empty((count, *manifest.model.data_shape), np.float32)
        for start in starts:
            size = min(batch, count - start)
            index = np.minimum(np.arange(start, start + batch), count - 1)  # the last image pads the last part

            def after_block(block: int, x: NDArray, size: int = size) -> None:
                if on_block:
                    on_block(block, unpatchify(x[:size], manifest.model))

            x = sample_batch(
                self._backend,
                manifest,
                tokens[index],
                conditions.part(index),
                guidance,
                attention_temperature=attention_temperature,
                plan=self.plan,
                on_block=after_block,
                on_tokens=report,
                on_passes=on_passes or (lambda block, count: None),
            )
            out[start : start + size] = unpatchify(x[:size], manifest.model)
        return out

    def sample(
        self,
        condition: ArrayLike | Sequence[str] | None = None,
        null_condition: ArrayLike | None = None,
        *,
        count: int | None = None,
        guidance: float | Guidance = 0.0,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.uint8]:
        """Sample images.

        Args:
            condition: Labels or condition tokens, see `generate`.
            null_condition: See `generate`.
            count: Number of images; by default one for each condition.
            guidance: Weight w >= 0, or a `Guidance`.
            seed: Image i is a function of (seed, i) and its condition, however the images are split into batches. (With
                `Jacobi` it is so up to its threshold: a batch iterates until all of its images have converged.)
            progress: See `generate`.

        Returns:
            [N, H, W, C] uint8.
        """
        if self.manifest.image.mode == "latent":
            raise UsageError("this model makes latents and the bundle holds no decoder; use generate(), or save .npy")
        count = count if count is not None else _implied_count(condition)
        x = self.generate(self.noise(count, seed), condition, null_condition, guidance=guidance, progress=progress)
        return self.to_images(x)

    def to_images(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Data [N, C, H, W] as pixels [N, H, W, C] uint8."""
        image = self.manifest.image
        return to_uint8(x / image.scale + image.shift)

    def _noise_tokens(self, noise: ArrayLike) -> NDArray[np.float32]:
        array = np.asarray(noise, np.float32)
        if array.shape[1:] != self.noise_shape or not len(array):
            raise UsageError(
                f"noise has shape {list(array.shape)}; this bundle was exported for [N, {', '.join(map(str, self.noise_shape))}]"
            )
        if not np.isfinite(array).all():
            raise UsageError("noise holds NaN or infinite values")
        model = self.manifest.model
        tokens = patchify(array, model) if model.noise_layout == "image" else array
        return tokens if self._deviation is None else tokens * self._deviation

    def _check_guidance(self, guidance: Guidance) -> None:
        if guidance.weight == 0:
            return
        spec = self.manifest.guidance
        if spec is None:
            if self.manifest.conditioning.kind == "none":
                raise UsageError(f"guidance {guidance.weight} on an unconditional model; leave it out")
            raise UsageError("this bundle was exported with --no-guidance; export it again without that option")
        if spec.rule == "ratio" and (guidance.annealed or not (guidance.scale and guidance.shift)):
            raise UsageError("STARFlow's guidance has a weight and top_only; the other options are TARFlow's")


class _Progress:
    """Adds up the tokens of blocks and parts."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, tokens: int) -> None:
        self._done += tokens
        if self._report:
            self._report(self._done, self._total)


def _resolve(plan: Plan, manifest: Manifest) -> DecodePlan | None:
    """A plan that fits the bundle; None for `auto`."""
    if isinstance(plan, str | os.PathLike):
        if plan == "auto":
            return None
        if plan == "sequential":
            return SEQUENTIAL
        name, plan = f"plan {os.fspath(plan)}", read_plan(Path(plan))
    elif isinstance(plan, Jacobi):
        name, plan = str(plan), plan.plan(manifest.decoded_tokens())
    else:
        name = "the plan"
    misfit = plan.misfit(manifest.decoded_tokens(), manifest.max_chunk, manifest.batch)
    if misfit:
        raise UsageError(f"{name}: {misfit}")
    return plan


def _implied_count(condition: ArrayLike | Sequence[str] | None) -> int:
    shape = np.shape(condition) if condition is not None else ()
    return shape[0] if len(shape) in (1, 3) else 1


def _prior_deviation(bundle: Bundle) -> NDArray | None:
    """[T, D] standard deviation of the prior, or None where it is 1."""
    spec = bundle.manifest.prior
    if spec is None:
        return None
    deviation = load_file(bundle.root / spec.path).get("standard_deviation")
    model = bundle.manifest.model
    if deviation is None or deviation.shape != (model.tokens, model.token_dim):
        raise BundleError(f"{bundle.root / spec.path}: holds no standard_deviation [{model.tokens}, {model.token_dim}]")
    return deviation
