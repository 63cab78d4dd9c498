"""Shards in Parquet: a row for each image, with its file and what it was made from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from starflow.runtime.generation.shard_format import Content, Item, ShardFormat

ROW_GROUP_BYTES = 32 << 20  # of images that wait in memory to be written together
MAGIC = b"PAR1"  # at both ends of a file
COLUMN_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
COLUMN_OF: dict[Content, str] = {"png": "image", "npy": "data"}


@contextmanager
def _write(path: Path, content: Content) -> Iterator[Callable[[Item], None]]:
    waiting: list[Item] = []
    size = 0
    writer: pq.ParquetWriter | None = None

    def flush() -> None:
        nonlocal writer, size
        facts = waiting[0].facts
        columns = [(name, COLUMN_TYPES[type(value)]) for name, value in facts.items()]
        schema = pa.schema([*columns, (COLUMN_OF[content], pa.binary())])
        if writer is None:  # PNG is compressed as it is; captions may repeat
            writer = pq.ParquetWriter(path, schema, compression="none", use_dictionary=["caption"])
        values = [[item.facts[name] for item in waiting] for name in facts]
        writer.write_table(pa.table([*values, [item.content for item in waiting]], schema=schema))
        waiting.clear()
        size = 0

    def add(item: Item) -> None:
        nonlocal size
        waiting.append(item)
        size += len(item.content)
        if size >= ROW_GROUP_BYTES:
            flush()

    try:
        yield add
        if waiting:
            flush()
    finally:
        if writer is not None:
            writer.close()


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
        file.seek(-min(len(MAGIC), len(start)), 2)
        return start == file.read() == MAGIC


PARQUET = ShardFormat(".parquet", _write, _is_whole)
