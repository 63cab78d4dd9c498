"""A text encoder in a Hugging Face folder: captions in, the last hidden states of their tokens out."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow.runtime.plain.errors import DataError, UsageError, first_line
from starflow.runtime.plain.install_hint import install_hint
from starflow.runtime.plain.json_text import read_json

PACKAGE = "package:"  # before a folder inside an installed Python package
BATCH = 64
# The largest sizes a configuration may name: vocabularies have up to 300,000 words, encoders up to 100 layers.
MOST_SIZE, MOST_LAYERS = 1 << 24, 1024


def encoder_folder(name: str) -> Path:
    """The folder of a text encoder; `package:NAME/FOLDER` names one inside an installed Python package.

    Raises:
        DataError: there is no such folder or package, or no text encoder in it.
    """
    folder = Path(name)
    if name.startswith(PACKAGE):
        package, _, rest = name.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f"{name}: the Python package {package} is not installed")
        folder = Path(spec.submodule_search_locations[0]) / rest
    if not (folder / "config.json").is_file():
        raise DataError(
            f"{name}: holds no config.json; name a Hugging Face folder with a text encoder and its tokenizer"
        )
    return folder


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a text encoder's folder, as transformers' fast class; a sentencepiece file is converted.

    Raises:
        DataError: there is none, or it pads on the left.
        UsageError: transformers is not installed.
    """
    transformers = _transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers tells of damaged and missing files by many types
        raise DataError(f"{folder}: has no tokenizer that can be read: {first_line(error)}") from error
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((folder / name).is_file() for name in files):  # transformers makes an empty one up
        raise DataError(f"{folder}: holds no tokenizer; expected one of {', '.join(files)}")
    if not tokenizer.is_fast or tokenizer.pad_token_id is None or tokenizer.padding_side != "right":
        raise DataError(
            f"{folder}: its tokenizer has no fast form or does not pad on the right, which the features of captions need"
        )
    return tokenizer


def load_encoder(folder: Path, tokens: int) -> Any:
    """The transformers model of a folder, in the number type of its file, for texts of up to T tokens.

    Raises:
        DataError: the folder holds something else, or the encoder takes fewer tokens.
        UsageError: transformers is not installed.
    """
    transformers = _transformers()
    try:
        _check_size(transformers, folder)
        # Plain attention: the fused kind leaves the mask out where no text of a batch is padded.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it then raises, or of what is checked below
            model, found = transformers.AutoModelForTextEncoding.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{folder}: cannot be read as a text encoder: {first_line(error)}") from error
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise DataError(f"{folder}: {len(missing)} tensor(s) are missing, such as {missing[0]}")
    most = getattr(model.config, "max_position_embeddings", tokens)
    if tokens > most:
        raise DataError(f"{folder}: takes up to {most} tokens, but {tokens} are asked for")
    return model.eval().requires_grad_(False)


def _check_size(transformers: Any, folder: Path) -> None:
    """See that the weights are as large as the configuration describes, before memory is taken for them.

    Raises:
        ValueError: they are not, or the configuration names sizes that no encoder has.
    """
    for field, value in read_json(folder / "config.json").items():
        most = MOST_LAYERS if "layers" in field else MOST_SIZE
        if isinstance(value, int) and value > most:
            raise ValueError(f"config.json: {field}: found {value}, expected at most {most:,}")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that the comparison below finds out
        described = sum(
            parameter.numel() for parameter in transformers.AutoModelForTextEncoding.from_config(config).parameters()
        )
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if described > held:  # a parameter takes a byte or more
        raise ValueError(f"config.json describes {described:,} parameters, the weights have {held:,} bytes")


@dataclass(frozen=True)
class Encoded:
    """Features of captions, without padding."""

    features: list[Tensor]  # float32 [t, W] for each caption of t tokens, 1 to T
    cut: int  # how many captions had more than T tokens


@torch.inference_mode()
def encode(texts: Sequence[str], folder: Path, tokens: int) -> Encoded:
    """Encode texts, template included, as the published code does: the last hidden states of up to T = `tokens` tokens.

    Special tokens count. For `folder` see `encoder_folder`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, model = load_tokenizer(folder), load_encoder(folder, tokens)
    model.to(device, torch.float32)  # whatever it is stored in: the activations of T5 outgrow fp16
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=tokens)["input_ids"]
    full = tokenizer(list(texts), verbose=False)["input_ids"]
    features: list[Tensor] = [torch.empty(0)] * len(ids)
    for batch in _by_length(ids):
        # Padding is masked, so it is enough to pad to the longest text of a batch.
        longest = max(1, *(len(ids[index]) for index in batch))
        padded = torch.full((len(batch), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(padded)
        for row, index in enumerate(batch):
            padded[row, : len(ids[index])] = torch.tensor(ids[index])
            mask[row, : len(ids[index])] = 1
        hidden = model(input_ids=padded.to(device), attention_mask=mask.to(device)).last_hidden_state.cpu()
        for row, index in enumerate(batch):
            features[index] = hidden[row, : len(ids[index])].clone()
    return Encoded(features, sum(len(long) > tokens for long in full))


def _by_length(ids: list[list[int]]) -> Iterator[list[int]]:
    """Indices in batches of texts of about the same length."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UsageError(f"text encoders need the package transformers: {install_hint('encoders')}") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(
        logging.CRITICAL
    )  # what it complains of it also raises, or is checked here
    return transformers
