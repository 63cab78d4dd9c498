"""docs/bundle.md is enough to make condition tokens of captions, in any language that has tokenizers and ONNX Runtime.

`features` is the manual's, and knows nothing of starflow. If a test here fails, either the bundle or the manual has changed
without the other.
"""

import inspect
import json
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers

from tests.text_encoders import published_features


def caption_features(root: Path, captions: list[str]) -> np.ndarray:
    """Float32 [N, tokens, width]."""
    manifest = json.loads((root / "manifest.json").read_text())
    text = manifest["text"]
    tokenizer = tokenizers.Tokenizer.from_file(str(root / text["tokenizer"]["path"]))
    encoder = onnxruntime.InferenceSession(root / text["encoder"]["file"]["path"])

    def features(caption):
        row = tokenizer.encode(text["template"].replace("{caption}", caption))
        return encoder.run(None, {"ids": [row.ids], "mask": [row.attention_mask]})[0][0]

    return np.stack([features(caption) for caption in captions])


def test_the_manual_makes_the_published_features(captioned_bundle: Path, t5_folder: Path) -> None:
    captions = ["a red apple", "two cats on the wall on the wall on the wall", ""]
    _, expected = published_features([f"a {caption}" for caption in captions], t5_folder, 8)
    np.testing.assert_allclose(caption_features(captioned_bundle, captions), expected, atol=1e-5)


def test_the_code_is_the_manuals(repository: Path) -> None:
    manual = (repository / "docs" / "bundle.md").read_text()
    for line in inspect.getsource(caption_features).splitlines():
        statement = line.strip().removesuffix(":")
        if statement.startswith(("row =", "return encoder", "text =")):
            assert statement in manual
