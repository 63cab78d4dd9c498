"""A text that states its own digest, so that a changed byte anywhere in it is noticed."""

import hashlib

BLANK = "0" * 64


def seal(text: str) -> str:
    """Put the digest of a text in the place of the 64 zeros that it holds once.

    The digest is the SHA-256, in hexadecimal, of the UTF-8 text while the zeros were there.
    """
    return text.replace(BLANK, _sha256(text), 1)


def is_sealed(text: str, digest: str) -> bool:
    """Whether `digest`, which stands in the text, is what `seal` put there."""
    return _sha256(text.replace(digest, BLANK, 1)) == digest


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
