"""What requests call a bundle."""

from pathlib import Path


def model_name(bundle: Path) -> str:
    """The name of its folder without `.bundle`, or its name on the Hugging Face Hub without the revision."""
    return bundle.resolve().name.partition("@")[0].removesuffix(".bundle")
