"""How a block's tokens are decoded: one by one, or in chunks iterated to a fixed point."""

from dataclasses import dataclass

from starflow.runtime.errors import UsageError


@dataclass(frozen=True)
class Jacobi:
    """Block-wise Jacobi decoding with the published semantics.

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

    def check(self, tokens: int, max_chunk: int) -> None:
        """Compare with what a bundle was exported for.

        Raises:
            UsageError: a chunk would be longer than the bundle allows, or a value is out of range.
        """
        if self.chunk < 1 or min(self.chunk, tokens) > max_chunk:
            raise UsageError(f"a chunk of {self.chunk} tokens; this bundle was exported for 1 to {max_chunk}")
        if self.max_iterations < 1 or not self.threshold >= 0:
            raise UsageError(f"Jacobi with {self.max_iterations} iterations and threshold {self.threshold}")
