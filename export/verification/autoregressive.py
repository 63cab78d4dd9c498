"""The flow blocks of an autoregressive flow, compared token by token."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.subject import Found, Part, Subject
from starflow.export.verification.tolerances import Kind
from starflow.runtime.autoregressive.tokens import from_block, patchify, to_block, unpatchify
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.block_runner import BlockInputs
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.traces.autoregressive import RecordedTrace, decode_block, decode_given, sample_trace
from starflow.runtime.traces.case import Case, Trace, finite


class AutoregressiveSubject(Subject):
    """The flow blocks of a bundle; `verify` says what its kinds are."""

    kinds: Mapping[Kind, str] = {
        "given": "Every token is given the reference's noise and the reference's tokens before it, decoded in chunks. Nothing a "
        "route computes is fed back to it: this is the error of the arithmetic alone, and a wrong mask, cache or position "
        "shows here first.",
        "block": "Every flow block starts from the reference's noise and goes on with its own tokens. Errors accumulate within "
        "a block, not from block to block.",
        "sample": "The whole sample, as it is run in use: every error is carried on to all that follows.",
    }

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._manifest = bundle, bundle.autoregressive
        self._blocks = {block.index: block for block in reversed(self._manifest.blocks) if not block.identity}
        self.parts = {
            index: Part(f"flow block {index}", index, prefix=block.prefix, first_token=block.first_token)
            for index, block in self._blocks.items()
        }
        model, count = self._manifest.model, len(self._blocks)
        blocks = f"{count} flow block{'' if count == 1 else 's'}"
        self.model = (
            f"{model.family}, {model.parameters:,} parameters, {blocks}, {model.tokens} tokens of {model.token_dim}"
        )

    def trace(self, variant: Variant, backend: Backend, case: Case) -> RecordedTrace:
        return sample_trace(self._bundle, variant, backend, case)

    def model_trace(self, model: Any, case: Case, conditions: tuple[Any, Any]) -> Trace:
        import torch

        after: list[torch.Tensor] = []
        model.reverse(torch.from_numpy(case.noise), *conditions, guidance=case.guidance, sequence=after)
        tokens: dict[int, NDArray] = {}
        for block, data in zip(reversed(self._manifest.blocks), after, strict=True):
            if not block.identity:
                natural = patchify(data.numpy(), self._manifest.model)
                tokens[block.index] = to_block(natural, self._manifest.model, block)
        return Trace(tokens)

    def run(
        self, variant: Variant, backend: Backend, case: Case, expected: Trace, on_part: Callable[[Part], None]
    ) -> Found:
        trace = self.trace(variant, backend, case)
        found: Found = {"given": {}, "block": {}, "sample": trace.tokens}
        above: Block | None = None
        for index, block in self._blocks.items():
            on_part(self.parts[index])
            runner = backend.block_runner(index)
            decoded, given = [], []
            for part, own in _parts(trace.inputs[index]):
                inputs = own if above is None else replace(own, noise=self._noise(expected, above, block)[part])
                decoded.append(decode_block(runner, block, inputs))
                given.append(decode_given(runner, block, inputs, finite(expected.tokens[index][part])))
            found["block"][index], found["given"][index] = np.concatenate(decoded), np.concatenate(given)
            above = block
        return found

    def data(self, trace: Trace) -> NDArray:
        last = list(self._blocks.values())[-1]
        model = self._manifest.model
        return unpatchify(from_block(trace.tokens[last.index], model, last), model)

    def load(self, variant: Variant, backend: Backend) -> None:
        backend.block_runner(variant.graphs[0].block)

    def _noise(self, trace: Trace, above: Block, block: Block) -> NDArray:
        """What goes into a block: the tokens of the one above, as its own."""
        model = self._manifest.model
        return to_block(from_block(finite(trace.tokens[above.index]), model, above), model, block)


def _parts(inputs: list[BlockInputs]) -> Iterator[tuple[slice, BlockInputs]]:
    """Which images each batch holds, and what a block was given for them."""
    start = 0
    for batch in inputs:
        yield slice(start, start + len(batch.noise)), batch
        start += len(batch.noise)
