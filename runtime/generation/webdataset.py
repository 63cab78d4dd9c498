"""Shards for WebDataset: tar files in which the files of an image follow each other and have its index as their name.

`000000012.png` is the image, `000000012.json` what it was made from, `000000012.cls` its label or `000000012.txt` its caption.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from starflow.runtime.generation.shard_format import Content, Item, ShardFormat

END = 1024  # zero bytes at the end of every tar file
LOADED_AS = {"label": "cls", "caption": "txt"}  # suffixes by which loaders know them


@contextmanager
def _write(path: Path, content: Content) -> Iterator[Callable[[Item], None]]:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

        def add(item: Item) -> None:
            files = {content: item.content, "json": json.dumps(item.facts).encode()}
            files |= {LOADED_AS[name]: str(value).encode() for name, value in item.facts.items() if name in LOADED_AS}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{item.facts['index']:09d}.{suffix}")  # no owner, and the time 0
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            archive.getmembers().clear()  # which are kept for readers

        yield add


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        begins = file.read(1) not in (b"", b"\0")  # with the name of a file
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - END, 0))
        return begins and size % tarfile.RECORDSIZE == 0 and file.read() == bytes(END)


WEBDATASET = ShardFormat(".tar", _write, _is_whole)
