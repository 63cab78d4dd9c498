"""Captions: read beside their images, and turned into text features once."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starflow.runtime.atomic_write import atomic_file
from starflow.runtime.errors import DataError, UsageError


def read_captions(path: Path, root: Path) -> dict[Path, str]:
    """Read captions as {image file: caption}, in the file's order.

    Args:
        path: `.jsonl` with {"file": ..., "caption": ...} a line, or `.csv` with the columns file and caption.
        root: Folder the image names are relative to.

    Raises:
        DataError: The file cannot be read, a line lacks a field, or a named image is missing.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines)) if path.suffix == ".csv" else [json.loads(x) for x in lines if x.strip()]
    except OSError as error:
        raise DataError(f"{path}: cannot read the captions: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: found neither JSON lines nor .csv: {error}") from None
    captions: dict[Path, str] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not isinstance(row.get("caption"), str):
            raise DataError(f"{path}: entry {number} lacks `file` or `caption`, both are texts")
        file = root / row["file"]
        if not file.is_file():
            raise DataError(f"{path}: entry {number} names {row['file']}, which is not in {root}")
        captions[file] = row["caption"]
    if not captions:
        raise DataError(f"{path}: holds no captions")
    return captions


def encode_captions(captions: list[str], encoder: Path, tokens: int, cache: Path) -> Tensor:
    """Last hidden states of a text encoder, padding zeroed.

    Args:
        captions: N texts.
        encoder: Folder with a Hugging Face text encoder and its tokenizer; nothing is fetched.
        tokens: T, the length every text is cut or padded to.
        cache: Where the features are kept; used again while captions, encoder and length stay the same.

    Returns:
        float32 [N, T, W].

    Raises:
        DataError: `encoder` is not such a folder.
        UsageError: transformers is not installed.
    """
    key = hashlib.sha256(json.dumps([captions, str(encoder), tokens]).encode()).hexdigest()
    if cache.is_file():
        with np.load(cache, allow_pickle=False) as archive:
            if str(archive["key"]) == key:
                return torch.from_numpy(archive["features"])
    try:
        from transformers import AutoModelForTextEncoding, AutoTokenizer
    except ImportError:
        raise UsageError("captions need transformers; pip install 'starflow-compiler[text]'") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
        model = AutoModelForTextEncoding.from_pretrained(encoder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise DataError(f"{encoder}: cannot be read as a text encoder: {str(error).splitlines()[0]}") from None
    parts = []
    with torch.inference_mode():
        for start in range(0, len(captions), 64):
            batch = tokenizer(
                captions[start : start + 64],
                padding="max_length",
                truncation=True,
                max_length=tokens,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state.float()
            parts.append(hidden * batch["attention_mask"][:, :, None])
    features = torch.cat(parts)
    with atomic_file(cache) as temporary, temporary.open("wb") as handle:
        np.savez(handle, features=features.numpy(), key=np.array(key))
    return features
