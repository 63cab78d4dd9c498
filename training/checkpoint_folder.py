"""How a folder of weights is written, of a flow or an autoencoder: whole, or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.plain.own_folder import FolderKind


@contextmanager
def checkpoint_folder(
    folder: str | os.PathLike[str],
    kind: FolderKind,
    extra_files: Mapping[str, str] | None,
    *,
    replace: bool = True,
    source: Path | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `folder` on success; the text files of `extra_files` join it.

    `kind`, `replace` and `source` are those of `atomic_folder`.

    Raises:
        CheckpointError: the disk is full.
        UsageError: `folder` exists and may not be replaced, or cannot be created.
    """
    with atomic_folder(folder, kind, replace=replace, source=source) as temporary:
        try:
            yield temporary
            for name, text in (extra_files or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written: {error.strerror}") from None
