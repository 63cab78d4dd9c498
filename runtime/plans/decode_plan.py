"""Decode plans: how the tokens of a block are decoded, one by one or several together by Jacobi iteration.

Token t of a flow block depends only on the tokens before it. So one can guess S tokens, run them together with the guess as
input, and run them again with the output as input. After k passes the first k tokens are exact, whatever the guess was, and S
passes give the sequential result. Jacobi iteration pays off if far fewer passes come close enough.

A student, a network beside the flow, makes all tokens of a block at once, and Jacobi iteration can go on from them.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.limits import MOST_PASSES
from starflow.runtime.plain.validation import Part, read_plan_file

Guess = Literal["noise", "previous", "zeros"]


class Steps(Part):
    """Tokens decoded one by one."""

    kind: Literal["steps"] = "steps"
    tokens: int = Field(ge=1)


class Chunk(Part):
    """Tokens that are iterated together from a guess until they stop changing.

    Attributes:
        tokens: Number of tokens decoded together, S.
        passes: Number of passes; with a tolerance, the largest number.
        tolerance: Change between two passes below which the chunk has converged. None runs all passes and reads no value, so
            the host never waits for a device.
        norm: Measure of the change: `mean-square` is mean((new - old)^2) / mean(new^2), `max` is the largest |new - old|.
        converged: Whether each `image` converges by itself and keeps its tokens while others go on, or the `batch` converges as
            a whole, as in the published sampler.
        guess: First guess: the `noise` of the tokens, the `previous` token repeated, or `zeros`.
        caches: Keys that later tokens see: `reference` keeps those of the last pass's inputs, as in the published sampler;
            `exact` computes those of the accepted tokens, in one more pass unless the last one changed nothing.
        expected: Average number of passes counted in calibration, for information only.
    """

    kind: Literal["chunk"] = "chunk"
    tokens: int = Field(ge=1)
    passes: int = Field(ge=1, le=MOST_PASSES)
    tolerance: float | None = Field(default=None, ge=0)
    norm: Literal["mean-square", "max"] = "mean-square"
    converged: Literal["image", "batch"] = "image"
    guess: Guess = "noise"
    caches: Literal["reference", "exact"] = "reference"
    expected: float | None = Field(default=None, gt=0)


class Window(Part):
    """Tokens that are iterated in a window, which moves on as its first tokens converge.

    A chunk runs all of its tokens until the last one is final. A window leaves final tokens behind and takes in new ones at every
    pass, so the passes of its tokens overlap. Tokens that it leaves had their final inputs, so caches need no further pass.

    A window has either `advances` or a `tolerance`.

    Attributes:
        tokens: Number of tokens the window moves over.
        width: Number of tokens in a pass; fewer at the end.
        advances: Number of tokens the window moves after each pass, whatever the values are.
        tolerance: Change of a token's inputs, as the root mean square over channels, below which the window moves past it. This
            is for a batch of one image: several would have to wait for each other and would depend on each other.
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
            raise ValueError("a window needs either advances or a tolerance")
        if self.advances is not None:
            if sum(self.advances) != self.tokens:
                raise ValueError(f"advances add up to {sum(self.advances)}, the window has {self.tokens} tokens")
            if not all(1 <= advance <= self.width for advance in self.advances):
                raise ValueError(f"advances must be between 1 and the width, {self.width}")
        return self

    def schedule(self) -> tuple[tuple[int, int], ...]:
        """(first token, number of tokens) of each pass of a window with fixed advances."""
        passes, first = [], 0
        for advance in self.advances or ():
            passes.append((first, min(self.width, self.tokens - first)))
            first += advance
        return tuple(passes)


class Student(Part):
    """All tokens of a flow block, made by its student in one pass.

    Samples are then not those of the flow, but of a network that was trained to come close. It is the only segment of its block.

    Attributes:
        tokens: Number of tokens, all that the block decodes.
        passes: Number of passes of Jacobi iteration over all tokens that follow, with the student's tokens as the first guess. 0
            takes them as they are, and the block's step graph is not run.
    """

    kind: Literal["student"] = "student"
    tokens: int = Field(ge=1)
    passes: int = Field(default=0, ge=0, le=MOST_PASSES)


Iterated = Chunk | Window
Segment = Annotated[Steps | Chunk | Window | Student, Field(discriminator="kind")]


class BlockPlan(Part):
    """The segments of one flow block, in the order of its tokens."""

    block: int = Field(ge=0)
    segments: tuple[Segment, ...]


class DecodePlan(Part):
    """How each flow block is decoded. Blocks that are not named are decoded token by token."""

    blocks: tuple[BlockPlan, ...]

    def segments(self, block: int, tokens: int) -> tuple[Segment, ...]:
        """The segments of a flow block with `tokens` tokens."""
        for plan in self.blocks:
            if plan.block == block:
                return plan.segments
        return (Steps(tokens=tokens),)

    @property
    def students(self) -> dict[int, Student]:
        """The segments of the flow blocks that a student does, by block."""
        return {plan.block: each for plan in self.blocks for each in plan.segments if isinstance(each, Student)}

    @property
    def takes_chunks(self) -> bool:
        """Whether a run of a step graph takes several tokens."""
        return any(_width(segment) > 1 for plan in self.blocks for segment in plan.segments)

    def misfit(
        self, tokens: Mapping[int, int], max_chunk: int, batch: int, students: Collection[int] = ()
    ) -> str | None:
        """Why the plan does not fit a bundle, or None if it does.

        Args:
            tokens: Number of tokens decoded in each flow block that has a graph.
            max_chunk: Largest number of tokens in one run.
            students: Flow blocks that have a student.
        """
        blocks = [plan.block for plan in self.blocks]
        for plan in self.blocks:
            where = f"flow block {plan.block}"
            if plan.block not in tokens or blocks.count(plan.block) > 1:
                times = blocks.count(plan.block)
                return f"{where} occurs {times} times; only {sorted(tokens)} may occur, each once"
            covered = sum(segment.tokens for segment in plan.segments)
            if covered != tokens[plan.block]:
                return f"the segments of {where} have {covered} tokens, the block has {tokens[plan.block]}"
            for segment in plan.segments:
                if isinstance(segment, Student) and plan.block not in students:
                    return f"{where} has no student in this bundle; `starflow export --student` adds one"
                if isinstance(segment, Student) and len(plan.segments) > 1:
                    return f"{where} has a student and further segments; a student makes all tokens of its block"
                width = _width(segment)
                if width > max_chunk:
                    return f"{where} has a run of {width} tokens; this bundle was exported for 1 to {max_chunk}"
                if batch > 1 and isinstance(segment, Window) and segment.tolerance is not None:
                    return f"{where} has a window with a tolerance, which is for a batch of 1; this bundle has a batch of {batch}"
        return None


def _width(segment: Segment) -> int:
    """Number of tokens in the widest run of a step graph."""
    if isinstance(segment, Steps):
        return 1
    if isinstance(segment, Student):
        return segment.tokens if segment.passes else 0
    return segment.tokens if isinstance(segment, Chunk) else min(segment.width, segment.tokens)


@dataclass(frozen=True)
class Jacobi:
    """Jacobi decoding in chunks with the published semantics, the same in every flow block.

    A chunk of tokens starts from its noise and is updated as a whole until its relative mean square change,
    mean((new - old)^2) / mean(new^2), falls below `threshold`. The caches keep the inputs of the last iteration.

    Attributes:
        chunk: Number of tokens decoded together; the last chunk of a block may be shorter.
        threshold: Relative mean square change at which a chunk has converged.
        max_iterations: Largest number of passes over a chunk.
    """

    chunk: int
    threshold: float = 1e-3
    max_iterations: int = 32

    def plan(self, tokens: Mapping[int, int]) -> DecodePlan:
        """The same as a decode plan, for flow blocks of so many tokens each; UsageError if a value is out of range."""
        if self.chunk < 1 or not 1 <= self.max_iterations <= MOST_PASSES or not self.threshold >= 0:
            raise UsageError(
                f"{self}: chunk must be at least 1, max_iterations between 1 and {MOST_PASSES:,}, threshold at least 0"
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


class Students(Part):
    """The plan called `student` or `student+N`: every flow block that has a student by it, the others as the bundle's own plan says.

    Attributes:
        passes: Passes of Jacobi iteration after the student's, N.
    """

    passes: int = Field(default=0, ge=0, le=MOST_PASSES)

    def __str__(self) -> str:
        return f"student+{self.passes}" if self.passes else "student"

    def plan(self, tokens: Mapping[int, int], students: Collection[int], own: DecodePlan) -> DecodePlan:
        """The same as a decode plan.

        Args:
            tokens: Number of tokens decoded in each flow block that has a graph.
            students: Flow blocks that have a student.
            own: The bundle's own plan, for the other blocks.
        """
        made = [
            BlockPlan(block=block, segments=(Student(tokens=tokens[block], passes=self.passes),)) for block in students
        ]
        return DecodePlan(blocks=(*made, *(plan for plan in own.blocks if plan.block not in students)))


def read_students(text: str) -> Students | None:
    """The plan that `student` or `student+N` names; None if `text` names something else."""
    found = re.fullmatch(r"student(?:\+(\d{1,9}))?", text)
    if found is None:
        return None
    passes = int(found[1] or 0)
    if passes > MOST_PASSES:
        raise UsageError(f"plan {text}: give at most {MOST_PASSES:,} passes")
    return Students(passes=passes)


def read_plan(path: Path) -> DecodePlan:
    """Read a plan's JSON file; UsageError if it is missing, not JSON, or not a decode plan."""
    return read_plan_file(path, DecodePlan.model_validate, instead="auto, sequential, student", known_fields=_FIELDS)


_FIELDS = tuple({name: None for part in (DecodePlan, BlockPlan, Chunk, Window, Student) for name in part.model_fields})
