"""Features of the captions of a data set: computed once, kept in a file, held without padding."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starflow.runtime.plain.array_file import read_archive
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.caption_template import fill_template
from starflow.training.config import TextEncoding
from starflow.training.text.text_encoder import encode, encoder_folder


@dataclass(frozen=True)
class TextFeatures:
    """Features of N captions; equal captions share their rows."""

    rows: Tensor  # float32 [R, W]
    # int64 [N]: where in `rows` a caption's features begin, and how many tokens it has.
    starts: Tensor
    lengths: Tensor
    tokens: int  # T, the length captions are padded to

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[N, T, W]."""
        return len(self), self.tokens, self.rows.shape[1]

    def __getitem__(self, index: Tensor) -> "TextFeatures":
        return replace(self, starts=self.starts[index], lengths=self.lengths[index])

    @property
    def nbytes(self) -> int:
        """Memory of the features, in bytes."""
        return self.rows.nbytes

    def to(self, device: torch.device) -> "TextFeatures":
        """The same on a device."""
        rows, starts, lengths = (each.to(device) for each in (self.rows, self.starts, self.lengths))
        return replace(self, rows=rows, starts=starts, lengths=lengths)

    def padded(self) -> Tensor:
        """float32 [N, T, W]; rows behind a caption's end are zero."""
        place = torch.arange(self.tokens, device=self.starts.device)
        inside = place < self.lengths[:, None]
        index = torch.where(inside, self.starts[:, None] + place, 0)
        return self.rows[index] * inside[:, :, None]


def caption_features(captions: Sequence[str], text: TextEncoding, tokens: int, cache: Path) -> TextFeatures:
    """Encode captions.

    Args:
        captions: N captions, without the template.
        text: The encoder, and the text around a caption.
        tokens: T; longer captions are cut, with a note on stderr.
        cache: File that keeps the features; it is used again while captions, encoder and template stay the same.

    Raises:
        DataError: the encoder cannot be read.
        UsageError: transformers is not installed.
    """
    folder = encoder_folder(text.encoder)
    texts = [fill_template(text.template, caption) for caption in captions]
    unique = list(dict.fromkeys(texts))
    files = sorted((file.name, file.stat().st_size) for file in folder.iterdir() if file.is_file())
    key = hashlib.sha256(json.dumps([unique, text.encoder, files, tokens]).encode()).hexdigest()
    rows, lengths = _cached(cache, key) or _computed(unique, folder, tokens, cache, key)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
    place = {each: index for index, each in enumerate(unique)}
    index = torch.tensor([place[each] for each in texts])
    return TextFeatures(rows, starts[index], lengths[index], tokens)


def _cached(cache: Path, key: str) -> tuple[Tensor, Tensor] | None:
    try:
        arrays = read_archive(cache)
        if str(arrays["key"]) != key:
            return None
        return torch.from_numpy(arrays["rows"]), torch.from_numpy(arrays["lengths"])
    except (OSError, ValueError, KeyError):  # there is none, or a damaged one, which is computed again
        return None


def _computed(texts: list[str], folder: Path, tokens: int, cache: Path, key: str) -> tuple[Tensor, Tensor]:
    encoded = encode(texts, folder, tokens)
    if encoded.cut:
        print(f"{encoded.cut} of {len(texts)} captions have more than {tokens} tokens and are cut", file=sys.stderr)
    lengths = torch.tensor([len(each) for each in encoded.features])
    rows = torch.cat(encoded.features)
    with atomic_file(cache) as temporary, temporary.open("wb") as handle:
        np.savez(handle, rows=rows.numpy(), lengths=lengths.numpy(), key=np.array(key))
    return rows, lengths
