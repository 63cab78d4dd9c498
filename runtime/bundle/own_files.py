"""What a command writes about a bundle must not take the place of a part of it."""

import os
from pathlib import Path, PurePosixPath

from starflow.runtime.bundle.build_record import ENGINES
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_digest import NAME
from starflow.runtime.plain.errors import UsageError


def refuse_own_files(bundle: Bundle, *outputs: Path | None) -> None:
    """UsageError if a file to be written is one of the bundle's, or lies in one of its folders."""
    root = Path(os.path.realpath(bundle.root))
    own = {"manifest.json", NAME, ENGINES, *(PurePosixPath(file.path).parts[0] for file in bundle.files())}
    for output in outputs:
        found = Path(os.path.realpath(output)) if output else root
        if found != root and found.is_relative_to(root) and found.relative_to(root).parts[0] in own:
            raise UsageError(f"{output}: belongs to the bundle {bundle.root}; name another file")
