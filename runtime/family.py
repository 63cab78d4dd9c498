"""The seam between the sampler and a family of flows: one batch of the exported size at a time.

`runtime/families.py` names the families there are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.conditions import Conditions
from starflow.runtime.plain.guidance import Guidance

OnBlock = Callable[[int, NDArray], None]
OnPasses = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """How images shall be sampled; see `Sampler.generate`."""

    guidance: Guidance
    attention_temperature: float = 1.0
    on_block: OnBlock | None = None
    on_passes: OnPasses | None = None


@dataclass(frozen=True)
class Inverted:
    """Data, seen from the noise.

    Attributes:
        noise: [N, *noise_shape] float32: what `Sampler.generate` makes the data of, without guidance.
        log_likelihood: [N] float64 nats, log p(data | condition).
        log_determinant: [N, T] float64, log |dz/dx| by token in raster order, summed over flow blocks and channels.
    """

    noise: NDArray[np.float32]
    log_likelihood: NDArray[np.float64]
    log_determinant: NDArray[np.float64]


class FamilyLoop(Protocol):
    """Turns noise into data, and data into noise where the family can."""

    @property
    def plan(self) -> Any:
        """How tokens are decoded, or how the velocity is integrated."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one image's noise."""

    @property
    def work(self) -> int:
        """What a batch counts in progress reports."""

    @property
    def decoding(self) -> str:
        """How images are sampled, in a few words."""

    def check(self, request: Request) -> None:
        """See that the bundle can do what is asked for.

        Raises:
            UsageError: it cannot.
        """

    def run(
        self, noise: NDArray, conditions: Conditions, request: Request, count: int, on_work: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """Sample one batch.

        Args:
            noise: [B, *noise_shape] float32, standard normal.
            conditions: Of the B images.
            request: What is asked for.
            count: How many of the B are wanted; the others pad.
            on_work: Called with the part of `work` just done.

        Returns:
            [B, *data_shape] float32.

        Raises:
            BackendError, IntegrationError: values are not finite.
        """

    def invert(self, x: NDArray, conditions: Conditions) -> Inverted:
        """Find the noise of one batch of data [B, *data_shape], and its density.

        Raises:
            UsageError: this family cannot, from a bundle.
            BackendError: values are not finite.
        """
