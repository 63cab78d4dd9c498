"""The distribution's extras: which one brings an optional package, and the command that installs it."""

import json
from importlib.metadata import PackageNotFoundError, distribution

DISTRIBUTION = "starflow-compiler"

# By the name a package is imported under.
EXTRA_OF = {
    "torch": "train",
    "yaml": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "matplotlib": "export",
    "onnx": "export",
    "polygraphy": "export",
    "diffusers": "encoders",
    "tensorrt": "tensorrt",
    "cuda": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tokenizers": "text",
    "transformers": "text",
}


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation: from the clone or the wheel that it came from, else by name."""
    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")  # PEP 610
    except PackageNotFoundError:  # imported from a folder that was never installed
        origin = {}
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    source = origin.get("url", "").removeprefix("file://") or DISTRIBUTION
    return f"pip install {editable}'{source}[{extra}]'"
