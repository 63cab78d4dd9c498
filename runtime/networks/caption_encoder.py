"""Captions to condition tokens, by the text encoder in a bundle."""

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.backends.choice import open_networks
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import TextSpec
from starflow.runtime.networks.network_runner import NetworkRunner
from starflow.runtime.plain.caption_template import fill_template
from starflow.runtime.plain.errors import BundleError, UsageError, first_line
from starflow.runtime.plain.install_hint import install_hint
from starflow.runtime.plain.json_text import parse_json
from starflow.runtime.plain.limits import MOST_CAPTION
from starflow.runtime.plain.native_errors import panics_unprinted

# Published tokenizers put one character in place of another.
MOST_GROWTH = 1000

logger = logging.getLogger(__name__)


class CaptionEncoder(NetworkRunner):
    """Encodes captions one by one, the empty caption only once.

    Raises:
        UsageError: the tokenizers library is not installed.
        BundleError: the tokenizer cannot be read.
    """

    def __init__(self, bundle: Bundle, sessions: NetworkSessions, text: TextSpec) -> None:
        super().__init__(sessions)
        self._text = text
        self._tokenizer_path = bundle.root / text.tokenizer.path
        self._tokenizer = load_tokenizer(bundle, text)
        self._null: NDArray[np.float32] | None = None

    def encode(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Features [N, T, width] of N captions. Captions of more than T tokens are cut, with a warning in the log."""
        features = {caption: self._encoded(caption) for caption in dict.fromkeys(captions)}
        return np.stack([features[caption] for caption in captions])

    @property
    def null(self) -> NDArray[np.float32]:
        """Features [T, width] of the empty caption, which are the null condition."""
        if self._null is None:
            self._null = self._encoded("")
        return self._null

    def _encoded(self, caption: str) -> NDArray[np.float32]:
        check_captions([caption])
        start = _start(caption)
        with _refused_by(self._tokenizer_path, f"does not take the caption {start!r}"):
            tokens = self._tokenizer.encode(fill_template(self._text.template, caption))
        if tokens.overflowing:
            logger.warning("caption %r is cut: it has more than %d tokens", start, self._text.tokens)
        ids, mask = (np.array([part], np.int64) for part in (tokens.ids, tokens.attention_mask))
        features: NDArray[np.float32] = self.run([self._text.encoder], {"ids": ids, "mask": mask})[0]
        return features


def encode_once(
    bundle: Bundle,
    captions: Sequence[str],
    *,
    backend: str = "onnxruntime",
    variant: str | None = None,
    provider: str = "cpu",
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features [N, T, width] of captions and [T, width] of the empty one, by an encoder that is freed afterwards.

    So a large encoder takes no memory beside the flow. It also takes less of its own on ONNX Runtime: T5-XL stored in float16
    needs 5.5 GiB instead of 8.4.

    Args:
        backend, variant, provider, threads: What runs the encoder; see `Sampler.open`.

    Raises:
        UsageError: the bundle has no text encoder, or the tokenizers library is not installed.
        BundleError: the tokenizer or the graph cannot be read.
        BackendError: the backend cannot run here.
    """
    text = text_of(bundle)
    opened = open_networks(bundle, backend, variant=variant, provider=provider, threads=threads, lean=True)
    with closing(opened) as sessions:
        encoder = CaptionEncoder(bundle, sessions, text)
        return encoder.encode(captions), encoder.null


def text_of(bundle: Bundle) -> TextSpec:
    """The text encoder of a bundle, as its manifest describes it; UsageError if it has none."""
    manifest = bundle.manifest
    if manifest.text:
        return manifest.text
    given = manifest.conditioning
    if given.kind != "features":
        raise UsageError(f"this model takes no captions; its condition is {given.kind}")
    raise UsageError(
        f"this bundle has no text encoder; give features float32 [N, {given.tokens}, {given.width}] as the condition, "
        "or export it with --text-encoder"
    )


def check_captions(captions: Sequence[str]) -> None:
    """See that no caption is too long; UsageError if one is."""
    for caption in captions:
        if len(caption) > MOST_CAPTION:
            raise UsageError(
                f"caption {_start(caption)!r} has {len(caption):,} characters, expected at most {MOST_CAPTION:,}"
            )


def _start(caption: str) -> str:
    return textwrap.shorten(caption[:1000], 60, placeholder=" ...")


def as_captions(condition: ArrayLike | Sequence[str] | None) -> list[str] | None:
    """A condition that is text, as a list; None if it is anything else. UsageError if the list is empty."""
    if isinstance(condition, str):
        return [condition]
    if isinstance(condition, Sequence | np.ndarray):
        if len(condition) == 0:
            raise UsageError("the list of captions is empty; give at least one caption, which may be the empty text")
        if all(isinstance(caption, str) for caption in condition):
            return [str(caption) for caption in condition]
    return None


def load_tokenizer(bundle: Bundle, text: TextSpec) -> Any:
    """The tokenizer of a bundle, which makes T tokens of any text.

    Raises:
        UsageError: the tokenizers library is not installed.
        BundleError: the tokenizer cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError(f"captions need the package tokenizers: {install_hint('text')}") from None
    path, length = bundle.root / text.tokenizer.path, text.tokens
    content = bundle.content(text.tokenizer)
    with _refused_by(path, "is not a tokenizer"):
        growth = _growth(parse_json(content.decode()))
        tokenizer = Tokenizer.from_buffer(content)
        padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
    if growth > MOST_GROWTH:
        raise BundleError(f"{path}: may make a caption {growth:,} times as long; export the bundle again")
    made = [padding.get(name) for name in ("length", "direction", "pad_to_multiple_of")]
    cut = [truncation.get(name) for name in ("max_length", "direction", "stride")]
    if (made, cut) != ([length, "right", None], [length, "right", 0]):
        raise BundleError(
            f"{path}: pads to {made[0]} tokens ({made[1]}) and cuts to {cut[0]} ({cut[1]}), expected {length} on the right, "
            "as the manifest says; export the bundle again"
        )
    return tokenizer


def _growth(tokenizer: Any) -> int:
    """How many times as long the rules of a tokenizer's file, applied in turn, may make a text."""
    growth, waiting = 1, [tokenizer["normalizer"], tokenizer["pre_tokenizer"]]
    while waiting:
        match waiting.pop():
            case {"content": str(put)} | {"prepend": str(put)} | {"replacement": str(put)}:
                growth *= max(1, len(put))
            case {"normalizers": list(rules)} | {"pretokenizers": list(rules)}:
                waiting += rules
    return growth


@contextmanager
def _refused_by(path: Path, what: str) -> Iterator[None]:
    """Turn an error of the tokenizers library, or a panic, into one line.

    Raises:
        BundleError: the library raised something.
    """
    try:
        with panics_unprinted():
            yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # it raises plain exceptions, and its panics are none
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise BundleError(f"{path}: {what}: {reason}; export the bundle again") from error
