"""How a block's tokens are decoded: one by one, or several together, iterated to a fixed point.

Token t of a flow block depends on the tokens before it and on nothing behind it. So S tokens can be guessed, run together
with the guess for their inputs, and run again with what came out: after k passes the first k are exact whatever the guess
was, and S passes are the sequential answer. Jacobi iteration pays where far fewer passes come close enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.validation import Part, read_plan_file

Guess = Literal["noise", "previous", "zeros"]


class Steps(Part):
    """Tokens decoded one by one."""

    kind: Literal["steps"] = "steps"
    tokens: int = Field(ge=1)


class Chunk(Part):
    """Tokens iterated together from a guess until they stop changing.

    Attributes:
        tokens: Tokens decoded together, S.
        passes: Passes it gets; with a tolerance, at most.
        tolerance: Change between two passes below which it has converged; None runs all passes and looks at no value, so
            nothing waits for a device.
        norm: How change is measured: `mean-square`, mean((new - old)^2) / mean(new^2), or `max`, the largest |new - old|.
        converged: Each `image` by itself, whose tokens stay as they are from then on while others go on; or the `batch` as
            a whole, as in the published sampler.
        guess: What it starts from: the tokens' `noise`, the `previous` token repeated, or `zeros`.
        caches: What later tokens see of it: `reference`, keys of the last pass's inputs, as in the published sampler; or
            `exact`, keys of the accepted tokens, which takes one more pass unless the last one changed nothing.
        expected: Passes that were counted when it was calibrated, on average. Nothing obeys it.
    """

    kind: Literal["chunk"] = "chunk"
    tokens: int = Field(ge=1)
    passes: int = Field(ge=1)
    tolerance: float | None = Field(default=None, ge=0)
    norm: Literal["mean-square", "max"] = "mean-square"
    converged: Literal["image", "batch"] = "image"
    guess: Guess = "noise"
    caches: Literal["reference", "exact"] = "reference"
    expected: float | None = Field(default=None, gt=0)


class Window(Part):
    """Tokens iterated in a window that slides on as its first ones settle.

    A chunk runs tokens that are final long since until its last one is. A window leaves them behind and takes in new ones
    at every pass, so their passes overlap; and what it leaves has its final inputs, so caches need no pass of their own.

    Attributes:
        tokens: Tokens it slides over.
        width: Tokens of a pass (fewer at the end).
        advances: By how many tokens it moves on after each pass, looking at no value. Or
        tolerance: it moves past each token whose inputs changed less, as the root mean square over their channels. For a
            single image only: several would have to wait for each other, and depend on each other.
        guess, expected: See `Chunk`.
    """

    kind: Literal["window"] = "window"
    tokens: int = Field(ge=1)
    width: int = Field(ge=2)
    advances: tuple[int, ...] | None = None
    tolerance: float | None = Field(default=None, ge=0)
    guess: Guess = "noise"
    expected: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_rule(self) -> "Window":
        if (self.advances is None) == (self.tolerance is None):
            raise ValueError("a window has either advances or a tolerance")
        if self.advances is not None:
            if sum(self.advances) != self.tokens:
                raise ValueError(f"advances add up to {sum(self.advances)} of {self.tokens} tokens")
            if not all(1 <= advance <= self.width for advance in self.advances):
                raise ValueError(f"advances must lie between 1 and the width, {self.width}")
        return self

    def schedule(self) -> tuple[tuple[int, int], ...]:
        """(first token, number of tokens) of every pass of a window with fixed advances."""
        passes, first = [], 0
        for advance in self.advances or ():
            passes.append((first, min(self.width, self.tokens - first)))
            first += advance
        return tuple(passes)


Iterated = Chunk | Window
Segment = Annotated[Steps | Chunk | Window, Field(discriminator="kind")]


class BlockPlan(Part):
    """The segments of one flow block, in the order of its tokens."""

    block: int = Field(ge=0)
    segments: tuple[Segment, ...]


class DecodePlan(Part):
    """How each flow block is decoded; one that is not named is decoded token by token."""

    blocks: tuple[BlockPlan, ...]

    def segments(self, block: int, tokens: int) -> tuple[Segment, ...]:
        """The segments of a flow block of so many tokens."""
        for plan in self.blocks:
            if plan.block == block:
                return plan.segments
        return (Steps(tokens=tokens),)

    def misfit(self, tokens: Mapping[int, int], max_chunk: int, batch: int) -> str | None:
        """What does not fit a bundle, or None.

        Args:
            tokens: How many tokens are decoded in each flow block that has a graph.
            max_chunk: Most tokens of one run.
            batch: Images decoded together.
        """
        blocks = [plan.block for plan in self.blocks]
        for plan in self.blocks:
            where = f"flow block {plan.block}"
            if plan.block not in tokens or blocks.count(plan.block) > 1:
                return (
                    f"{where} is planned {blocks.count(plan.block)} times; there are {sorted(tokens)} to plan once each"
                )
            covered = sum(segment.tokens for segment in plan.segments)
            if covered != tokens[plan.block]:
                return f"segments of {where} cover {covered} of its {tokens[plan.block]} tokens"
            for segment in plan.segments:
                width = _width(segment)
                if width > max_chunk:
                    return f"a run of {width} tokens in {where}; this bundle was exported for 1 to {max_chunk}"
                if batch > 1 and isinstance(segment, Window) and segment.tolerance is not None:
                    return f"a window with a tolerance in {where} is for a single image; this bundle's batch is {batch}"
        return None


def _width(segment: Steps | Chunk | Window) -> int:
    """Tokens of the segment's widest run."""
    if isinstance(segment, Steps):
        return 1
    return segment.tokens if isinstance(segment, Chunk) else min(segment.width, segment.tokens)


@dataclass(frozen=True)
class Jacobi:
    """Block-wise Jacobi decoding with the published semantics, in every flow block alike.

    A chunk of tokens starts as its noise and is updated as a whole until its relative mean square change,
    mean((new - old)^2) / mean(new^2), falls below `threshold`. The caches keep the last iteration's inputs.

    Attributes:
        chunk: Tokens decoded together (the last chunk of a block may be shorter).
        threshold: Relative mean square change that ends a chunk.
        max_iterations: Passes a chunk gets at most.
    """

    chunk: int
    threshold: float = 1e-3
    max_iterations: int = 32

    def plan(self, tokens: Mapping[int, int]) -> DecodePlan:
        """The same as a plan for flow blocks of so many tokens.

        Raises:
            UsageError: a value is out of range.
        """
        if self.chunk < 1 or self.max_iterations < 1 or not self.threshold >= 0:
            raise UsageError(
                f"Jacobi in chunks of {self.chunk} with {self.max_iterations} iterations and threshold {self.threshold}"
            )
        return DecodePlan(
            blocks=tuple(BlockPlan(block=block, segments=self._segments(count)) for block, count in tokens.items())
        )

    def _segments(self, tokens: int) -> tuple[Segment, ...]:
        return tuple(
            Chunk(
                tokens=min(self.chunk, tokens - start),
                passes=self.max_iterations,
                tolerance=self.threshold,
                converged="batch",
            )
            for start in range(0, tokens, self.chunk)
        )


def read_plan(path: Path) -> DecodePlan:
    """Read a plan's JSON file.

    Raises:
        UsageError: it is missing, not JSON, or not a plan.
    """
    return read_plan_file(path, DecodePlan.model_validate, instead="auto, sequential", known_fields=_FIELDS)


_FIELDS = tuple({name: None for part in (DecodePlan, BlockPlan, Chunk, Window) for name in part.model_fields})
