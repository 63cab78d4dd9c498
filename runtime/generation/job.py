"""What is generated, of which bundle, and where to: everything that a process needs to make any shard of a set."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starflow.runtime.generation.image_set import ImageSet
from starflow.runtime.generation.shard_folder import ShardFolder


@dataclass(frozen=True)
class Job:
    """A set of images to be made in shards. It can be sent to processes on other machines that see the same paths.

    Attributes:
        bundle: The bundle, as `Sampler.open` takes it.
        images: The set.
        folder: Where its shards go.
        options: Arguments of `Sampler.open`: batch, which must be given, backend, variant, plan, provider, threads, shape.
        force: Whether shards that are there are made again.
    """

    bundle: Path
    images: ImageSet
    folder: ShardFolder
    options: dict[str, Any] = field(default_factory=dict)
    force: bool = False

    @property
    def batch(self) -> int:
        """Images of a batch."""
        batch: int = self.options["batch"]
        return batch
