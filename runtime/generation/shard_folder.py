"""The shards of a set in a folder: their names, and which are missing."""

from dataclasses import dataclass
from pathlib import Path

from starflow.runtime.generation.formats import shard_format
from starflow.runtime.generation.shard_format import ShardFormat


@dataclass(frozen=True)
class ShardFolder:
    """A folder for the shards of one set.

    Attributes:
        root: The folder.
        format_name: The format of the shards.
        shards: Number of shards of the set.
    """

    root: Path
    format_name: str
    shards: int

    @property
    def format(self) -> ShardFormat:
        return shard_format(self.format_name)

    @property
    def record(self) -> Path:
        """The file that says what the shards are made of. What reads a folder of Parquet files skips names that begin so."""
        return self.root / "_set.json"

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.root / f"shard-{shard:05d}-of-{self.shards:05d}{self.format.suffix}"

    def is_made(self, shard: int) -> bool:
        """Whether a shard is there. A file that was cut short, by a copy that broke off for instance, does not count."""
        path = self.path(shard)
        return path.is_file() and self.format.is_whole(path)

    def missing(self) -> list[int]:
        """The shards that are not there."""
        return [shard for shard in range(self.shards) if not self.is_made(shard)]
