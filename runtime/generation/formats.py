"""The formats of shards by name."""

from typing import Literal, get_args

from starflow.runtime.generation.shard_format import ShardFormat
from starflow.runtime.generation.webdataset import WEBDATASET
from starflow.runtime.plain.errors import UsageError

FormatName = Literal["webdataset", "parquet"]


def shard_format(name: str) -> ShardFormat:
    """The format of a name.

    Raises:
        UsageError: there is no such format.
        ModuleNotFoundError: it needs a package that is not installed.
    """
    if name == "webdataset":
        return WEBDATASET
    if name == "parquet":
        from starflow.runtime.generation.parquet import PARQUET

        return PARQUET
    raise UsageError(f"--format {name}: expected one of {', '.join(get_args(FormatName))}")
