"""Compares the text encoder of a bundle with that of transformers, on a few captions.

Torch is imported only when there is an encoder to compare with: verifying without one does not need it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from starflow.export.verification.agreement import Measurement, compare_one
from starflow.export.verification.routes import NotRun
from starflow.export.verification.subject import Part
from starflow.export.verification.tolerances import Precision, Tolerances
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import TextSpec
from starflow.runtime.networks.caption_encoder import CaptionEncoder
from starflow.runtime.plain.caption_template import fill_template
from starflow.runtime.plain.errors import DataError, UsageError

NAME = "text encoder"
CAPTIONS = ("", "a red apple", "Two cats, and a dog (black & white): 3 friends!")


def text_encoder_folder(bundle: Bundle, checkpoint: Path | None, asked: str | None) -> Path | NotRun | None:
    """The folder of the text encoder a bundle was exported with, or why it is not compared; None where there is none.

    It is the folder that is asked for, else the one that the checkpoint holds or names.

    Raises:
        UsageError: a folder is asked for, and the bundle has no text encoder.
        DataError: the folder that is asked for holds no text encoder.
    """
    if bundle.manifest.text is None:
        if asked:
            raise UsageError(f"--text-encoder {asked}: this bundle has no text encoder")
        return None
    unknown = NotRun(NAME, "it has no reference here; name --text-encoder")
    if not asked and not checkpoint:
        return unknown

    from starflow.export.networks.text_encoder import named_encoder
    from starflow.training.checkpoint import open_checkpoint
    from starflow.training.text.text_encoder import encoder_folder

    if asked:
        return encoder_folder(asked)
    assert checkpoint is not None
    name = named_encoder(checkpoint, open_checkpoint(checkpoint)[0])
    try:
        return encoder_folder(name) if name else unknown
    except DataError as error:
        return NotRun(NAME, f"{error} (--text-encoder)")


def compare_text_encoder(bundle: Bundle, folder: Path, tolerances: Tolerances) -> list[Measurement]:
    """Compare features, [captions, T, width], with those of the encoder in `folder`."""
    from starflow.training.text.text_encoder import encode

    text = bundle.manifest.text
    assert text is not None
    encoder = CaptionEncoder(bundle, text)
    found = encoder.encode(CAPTIONS)
    encoder.close()
    expected: NDArray[np.float32] = np.zeros_like(found)
    encoded = encode([fill_template(text.template, caption) for caption in CAPTIONS], folder, text.tokens)
    for row, features in zip(expected, encoded.features, strict=True):
        row[: len(features)] = features
    tolerance = tolerances[_precision(bundle, text), "text"]
    return compare_one(NAME, "text", Part("the features"), expected, found, tolerance)


def _precision(bundle: Bundle, text: TextSpec) -> Precision:
    """Whether weights may have been rounded to half precision."""
    with safe_open(bundle.path(text.encoder.weights), "pt") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return "fp16" if "F16" in types else "fp32"
