"""Sizes a step graph is built for: what the exporter decides and the runtime must agree with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepGeometry:
    """Static sizes of one block's step graph.

    A position is an index into the caches: condition tokens first, then the block's network inputs. The network input at
    position p predicts one token; row p of the noise and sample buffers belongs to that token. With a start token the
    inputs are [start, x_0 .. x_{T-2}] and predict x_0 .. x_{T-1}; without one they are x_0 .. x_{T-2}, predict
    x_1 .. x_{T-1}, and x_0 passes unchanged.
    """

    batch: int  # images B decoded together
    rows: int  # rows of the network: 2B where guidance needs [conditional, null] halves, else B
    prefix: int  # condition tokens m in front
    # Image size in tokens.
    height: int
    width: int
    start_token: bool

    @property
    def tokens(self) -> int:
        """Length T of the sequence."""
        return self.height * self.width

    @property
    def first_token(self) -> int:
        """Index of the first token the network predicts."""
        return 0 if self.start_token else 1

    @property
    def capacity(self) -> int:
        """Positions in a cache: condition tokens and network inputs."""
        return self.prefix + self.tokens - self.first_token

    @property
    def guided(self) -> bool:
        return self.rows == 2 * self.batch
