"""What gives the networks of a bundle beside the flow their batches: the base of autoencoder, caption encoder and denoiser."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.batches import batches


class NetworkRunner:
    """Runs networks of a bundle through `sessions`, for several threads at the same time."""

    def __init__(self, sessions: NetworkSessions) -> None:
        self._sessions = sessions

    def run(self, networks: Sequence[NetworkSpec], inputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """The output of a network for N samples, which run in batches of the exported sizes, the last one padded.

        Args:
            networks: A network with one output, at each of its batch sizes.
            inputs: [N, ...] for each input, by name; converted to the type the graph takes.

        Raises:
            BundleError: the graph does not load, or is not the one the manifest describes.
            BackendError: it cannot run here, or a run failed.
        """
        by_size = {int(network.inputs[0].shape[0]): network for network in networks}
        # The interface of every network beside the flow is float32 and int64, which NumPy has.
        given = {spec.name: np.ascontiguousarray(inputs[spec.name], spec.dtype) for spec in networks[0].inputs}
        count, parts = len(given[networks[0].inputs[0].name]), []
        for _, index in batches(count, *by_size):
            parts.append(self._sessions.run(by_size[len(index)], {name: x[index] for name, x in given.items()}))
        return np.concatenate(parts)[:count]
