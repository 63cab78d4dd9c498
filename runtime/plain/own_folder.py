"""Which folders a command may replace: only those that it recognises as made by starflow."""

import os
from dataclasses import dataclass
from pathlib import Path

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.json_text import read_json


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that starflow writes."""

    name: str  # what messages call it
    file: str  # path in the folder of a JSON file that every folder of the kind holds
    fields: frozenset[str]  # of that file

    def recognises(self, folder: Path) -> bool:
        """Whether a folder is of this kind."""
        try:
            content = read_json(folder / self.file)
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and self.fields <= content.keys()


BUNDLE = FolderKind("bundle", "manifest.json", frozenset({"schema_version", "variants", "provenance"}))
CHECKPOINT = FolderKind("checkpoint", "config.json", frozenset({"model"}))
AUTOENCODER = FolderKind("autoencoder", "config.json", frozenset({"_class_name"}))
STUDENT = FolderKind("student", "config.json", frozenset({"teacher", "stages"}))
LATENTS = FolderKind("latents", "autoencoder/config.json", AUTOENCODER.fields)


def check_replaceable(destination: Path, kind: FolderKind, source: Path | None) -> None:
    """See that nothing is lost that is not a folder of the kind.

    Args:
        destination: The folder that is to be replaced; it exists.
        kind: What it has to be, unless it is empty.
        source: What is read while its successor is written.

    Raises:
        UsageError: it is something else, or holds the source.
    """
    if source is not None and Path(os.path.realpath(source)).is_relative_to(os.path.realpath(destination)):
        raise UsageError(f"{destination}: holds {source}, which is read; name another folder")
    if any(destination.iterdir()) and not kind.recognises(destination):
        raise UsageError(
            f"{destination}: is not a {kind.name}, so --force does not replace it; remove it yourself, or name another folder"
        )
