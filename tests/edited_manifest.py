"""Changes a bundle's manifest as somebody would who also takes its digest away."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the parsed manifest of a bundle, and remove the digest that it then no longer has."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    (bundle / "manifest.sha256").unlink(missing_ok=True)
