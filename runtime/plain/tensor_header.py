"""Reads the header of a safetensors file, and compares the file's size with it before the file is mapped or read whole."""

import os
from pathlib import Path
from typing import Any

from starflow.runtime.plain.json_text import parse_json
from starflow.runtime.plain.regular_file import open_regular

MOST_HEADER_BYTES = 100 << 20  # as the safetensors library has it
METADATA = "__metadata__"


def read_tensor_header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes before the data, and the header that they hold: an entry for each tensor, and the metadata.

    Raises:
        ValueError: it is no such file, or has another size than its header says; one line.
        OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 0 < length <= min(MOST_HEADER_BYTES, size - 8):
            raise ValueError("it does not begin with a header")
        start += file.read(length)
    try:
        header = parse_json(start[8:].decode())
        entries = [entry for name, entry in header.items() if name != METADATA]
        end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is damaged: {error}") from None
    if size != len(start) + end:
        raise ValueError(f"its header says {len(start) + end:,} bytes, but it has {size:,}")
    return start, header
