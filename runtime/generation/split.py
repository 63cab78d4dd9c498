"""Which images of a set a shard holds."""

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.limits import MOST_SHARDS


def check_shards(count: int, batch: int, shards: int) -> None:
    """See that every shard gets a batch of images or more.

    Raises:
        UsageError: there are more shards than batches, or than anybody needs.
    """
    batches = -(-count // batch)
    if shards > MOST_SHARDS:
        raise UsageError(f"--shards {shards}: give a number of at most {MOST_SHARDS:,}")
    if not 1 <= shards <= batches:
        have = "image makes 1 batch" if count == 1 else f"images make {batches:,} batch{'es' * (batches > 1)}"
        raise UsageError(f"--shards {shards}: {count:,} {have} of {batch}, so give a number from 1 to {batches:,}")


def shard_images(count: int, batch: int, shards: int, shard: int) -> range:
    """The images of a shard, whole batches of the set, as many as of the others or one more.

    A set is cut between batches, so each batch holds the same images however many shards there are. With a decode plan that
    iterates until a whole batch has converged, an image depends on its batch.

    Args:
        count: Number of images of the set.
        batch: Images of a batch; the last one of the set may have fewer.
        shards: Number of shards.
        shard: Number of this one, from 0.
    """
    batches = -(-count // batch)
    start, stop = (batches * number // shards * batch for number in (shard, shard + 1))
    return range(start, min(stop, count))
