"""The interface between the sampler and a family of flows: one batch of the exported size at a time.

`runtime/families.py` lists the families.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.manifest import FlowManifest
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.conditions import Conditions
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance

OnBlock = Callable[[int, NDArray], None]
OnPasses = Callable[[int, int], None]
RunNetwork = Callable[[NetworkSpec, Mapping[str, NDArray]], NDArray]  # as `NetworkSessions.run`


@dataclass(frozen=True)
class Request:
    """Options of sampling one batch; see `Sampler.generate`."""

    guidance: Sequence[Guidance]  # of each image
    attention_temperature: float = 1.0
    on_block: OnBlock | None = None
    on_passes: OnPasses | None = None
    run_network: RunNetwork | None = None  # runs the networks beside the flow that a plan asks for


@dataclass(frozen=True)
class Inverted:
    """The noise and the density of data."""

    # [N, *noise_shape] float32, which `Sampler.generate` turns into the data, without guidance.
    noise: NDArray[np.float32]
    log_likelihood: NDArray[np.float64]  # [N] float64 nats, log p(data | condition)
    # [N, T] float64, log |dz/dx| by token in raster order, summed over flow blocks and channels.
    log_determinant: NDArray[np.float64]


class FamilyLoop(Protocol):
    """Turns noise into data, and data into noise if the family can."""

    @property
    def plan(self) -> Any:
        """The decode plan or integration plan."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one image's noise."""

    @property
    def work(self) -> int:
        """Number of units of progress in one batch."""

    @property
    def decoding(self) -> str:
        """The plan in a few words."""

    def load(self) -> None:
        """Load every graph of the flow now, not when it is first needed."""

    def check(self, request: Request) -> None:
        """Raise UsageError if the bundle cannot do what is asked for."""

    def run(
        self, noise: NDArray, conditions: Conditions, request: Request, count: int, on_work: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """Sample one batch, [B, *data_shape] float32.

        Args:
            noise: [B, *noise_shape] float32, standard normal.
            count: Number of images that are wanted; the others pad the batch.
            on_work: Called with the number of units just done, see `work`.

        Raises:
            BackendError, IntegrationError: a value is not finite.
        """

    def invert(self, x: NDArray, conditions: Conditions) -> Inverted:
        """Find the noise of one batch of data [B, *data_shape], and its density.

        Raises:
            UsageError: bundles of this family cannot invert data.
            BackendError: a value is not finite.
        """


def no_guidance(manifest: FlowManifest, weight: float) -> UsageError:
    """The error for guidance of a bundle that takes none."""
    if manifest.conditioning.kind == "none":
        return UsageError(f"guidance {weight} on an unconditional model; leave it out")
    return UsageError("this bundle was exported with --no-guidance; export it again without that option")
