"""Autoregressive flows behind the sampler: token layout, prior, choice of the plan, and checks of a request."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from starflow.runtime.autoregressive.inversion import invert_batch
from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL, SampledBlock, sample_blocks
from starflow.runtime.autoregressive.students import blocks_without_steps, check_students
from starflow.runtime.autoregressive.tokens import from_block, patchify, unpatchify
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.conditions import Conditions
from starflow.runtime.family import Inverted, Request, no_guidance
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.guidance import WHOLE_WAY
from starflow.runtime.plans.decode_plan import DecodePlan, Jacobi, Students, read_plan, read_students


class AutoregressiveLoop:
    """Runs the flow blocks of a bundle by a decode plan; a `FamilyLoop`.

    Plan None takes the plan stored for the backend and variant, or decodes sequentially if there is none.
    """

    def __init__(self, bundle: Bundle, variant: Variant, backend: Backend, plan: DecodePlan | Students | None) -> None:
        self._manifest, self._backend = bundle.autoregressive.run_by(variant.name), backend
        stored = self._manifest.plan_for(backend.name, variant.name)
        own = stored.plan if stored else SEQUENTIAL
        if isinstance(plan, Students):
            plan = plan.plan(self._manifest.decoded_tokens(), self._manifest.student_blocks, own)
        self.plan = plan or own
        if self.plan.takes_chunks and not variant.takes_chunks:
            raise UsageError(
                f"variant {variant.name} decodes token by token; for a plan take a cpu or portable variant"
            )
        self._deviation = _prior_deviation(bundle)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        model = self._manifest.model
        return model.data_shape if model.noise_layout == "image" else (model.tokens, model.token_dim)

    @property
    def work(self) -> int:
        """Number of tokens over all flow blocks."""
        model = self._manifest.model
        return sum(block.token_shape(model)[0] for block in self._manifest.blocks if not block.identity)

    @property
    def decoding(self) -> str:
        students = [
            f"flow block {block} by its student{_and_passes(student.passes)}"
            for block, student in sorted(self.plan.students.items(), reverse=True)
        ]
        return ", ".join(["by plan" if self.plan.blocks else "sequential", *students])

    def load(self) -> None:
        unused = blocks_without_steps(self._manifest, self.plan)
        for block in self._manifest.blocks:
            if not block.identity and block.index not in unused:
                self._backend.block_runner(block.index)

    def check(self, request: Request) -> None:
        manifest, temperature = self._manifest, request.attention_temperature
        ratio = manifest.guidance is not None and manifest.guidance.rule == "ratio"
        for guidance in set(request.guidance):
            if guidance.weight and manifest.guidance is None:
                raise no_guidance(manifest, guidance.weight)
            if guidance.weight and ratio and (guidance.annealed or not (guidance.scale and guidance.shift)):
                raise UsageError(
                    "guidance of STARFlow takes a weight, a schedule and top_only; the other options are for TARFlow"
                )
            if guidance.interval != WHOLE_WAY:
                raise UsageError(
                    "guidance interval is for continuous flows; this bundle takes a schedule over flow blocks"
                )
            if len(guidance.schedule) not in (0, len(manifest.blocks)):
                raise UsageError(
                    f"guidance schedule: {len(guidance.schedule)} factors for {len(manifest.blocks)} flow blocks; "
                    "give one for each, from block 0 on"
                )
        if temperature != 1.0 and not manifest.attention_temperature:
            raise UsageError("this bundle has no attention temperature; export it with --attention-temperature")
        if not temperature > 0:
            raise UsageError(f"attention temperature {temperature}: give a number > 0")
        check_students(manifest, self.plan, request)

    def run(
        self, noise: NDArray, conditions: Conditions, request: Request, count: int, on_work: Callable[[int], None]
    ) -> NDArray[np.float32]:
        manifest, model, x = self._manifest, self._manifest.model, self._tokens(noise)
        sampled = sample_blocks(self._backend, manifest, x, conditions, request, self.plan, on_work)
        for block in reversed(manifest.blocks):
            if not block.identity:
                made = next(sampled)
                x = made.natural
                if request.on_passes:
                    request.on_passes(block.index, made.passes)
            if request.on_block:
                request.on_block(block.index, unpatchify(x[:count], model))
        return unpatchify(np.ascontiguousarray(x), model)

    def blocks(self, noise: NDArray, conditions: Conditions, request: Request) -> Iterator[SampledBlock]:
        """Sample one batch flow block by flow block, NaN and infinity included; see `FamilyLoop.run`."""
        backend, manifest, tokens = self._backend, self._manifest, self._tokens(noise)
        return sample_blocks(backend, manifest, tokens, conditions, request, self.plan, finite=False)

    def _tokens(self, noise: NDArray) -> NDArray:
        """Noise as the deep block takes it: tokens in raster order, scaled by the prior."""
        model = self._manifest.model
        tokens = patchify(noise, model) if model.noise_layout == "image" else noise
        return tokens if self._deviation is None else tokens * self._deviation

    def invert(self, x: NDArray, conditions: Conditions) -> Inverted:
        model = self._manifest.model
        tokens = patchify(x, model)
        log_sigma = np.zeros(tokens.shape[:2])
        for found in invert_batch(self._backend, self._manifest, tokens, conditions):
            tokens = from_block(found.inputs.noise, model, found.block)
            log_sigma += from_block(found.log_sigma, model, found.block).sum(axis=2)
        if self._deviation is not None:
            tokens = tokens / self._deviation
            log_sigma += np.log(self._deviation.astype(np.float64)).sum(axis=1)
        log_normal = -0.5 * (np.square(tokens, dtype=np.float64) + np.log(2 * np.pi)).sum(axis=(1, 2))
        noise = unpatchify(tokens, model) if model.noise_layout == "image" else np.ascontiguousarray(tokens)
        return Inverted(noise, log_normal - log_sigma.sum(axis=1), -log_sigma)


def _and_passes(count: int) -> str:
    return f" and {count} pass{'es' if count > 1 else ''}" if count else ""


def resolve_decode_plan(manifest: AutoregressiveManifest, plan: object) -> DecodePlan | Students | None:
    """The decode plan for a value that `Sampler.open` takes, None for `auto`; UsageError if it does not fit."""
    plan = (read_students(plan) if isinstance(plan, str) else None) or plan
    if isinstance(plan, Students):
        if not manifest.students:
            raise UsageError(f"plan {plan}: this bundle has no students; `starflow export --student` adds them")
        made = plan.plan(manifest.decoded_tokens(), manifest.student_blocks, SEQUENTIAL)
        _check_fit(manifest, made, f"plan {plan}")
        return plan
    if isinstance(plan, str | os.PathLike):
        if plan == "auto":
            return None
        if plan == "sequential":
            return SEQUENTIAL
        name, plan = f"plan {os.fspath(plan)}", read_plan(Path(plan))
    elif isinstance(plan, Jacobi):
        name, plan = str(plan), plan.plan(manifest.decoded_tokens())
    elif isinstance(plan, DecodePlan):
        name = "the plan"
    else:
        raise UsageError(
            f"{plan}: solvers and steps are for continuous flows; this bundle takes a decode plan, see --plan"
        )
    _check_fit(manifest, plan, name)
    return plan


def _check_fit(manifest: AutoregressiveManifest, plan: DecodePlan, name: str) -> None:
    misfit = plan.misfit(manifest.decoded_tokens(), manifest.max_chunk, manifest.batch, manifest.student_blocks)
    if misfit:
        raise UsageError(f"{name}: {misfit}")


def _prior_deviation(bundle: Bundle) -> NDArray | None:
    """[T, D] standard deviation of the prior, or None if it is 1."""
    spec, model = bundle.autoregressive.prior, bundle.autoregressive.model
    if spec is None:
        return None
    deviation = load(bundle.content(spec)).get("standard_deviation")
    if deviation is None or deviation.shape != (model.tokens, model.token_dim):
        raise BundleError(f"{bundle.root / spec.path}: holds no standard_deviation [{model.tokens}, {model.token_dim}]")
    return deviation
