"""Changes a bundle's manifest as somebody would who also takes its digest out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the parsed manifest of a bundle, and drop the digest that it then no longer has."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("manifest_sha256", None)
    change(content)
    path.write_text(json.dumps(content))
