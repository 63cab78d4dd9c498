"""Brings files from the Hugging Face Hub into its cache, where other programs find them, too.

Without a network, or where the variable HF_HUB_OFFLINE is set, what the cache holds is taken.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from starflow.runtime.plain.errors import UsageError, first_line
from starflow.runtime.plain.install_hint import install_hint

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
"""`org/name` or `org/name@revision`."""


def import_hub() -> None:
    """Have `huggingface_hub` ready, which then tells the Hub nothing about this machine's packages.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
    import huggingface_hub  # noqa: F401


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep `huggingface_hub` from logging what its errors say as well, such as every time it tries again."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def fetch_files(repository: str, revision: str | None, patterns: Sequence[str], otherwise: str = "") -> Path:
    """Fetch files of a model, and return the folder of its snapshot.

    Args:
        repository: `org/name`.
        revision: Branch, tag or commit; None is the main branch.
        patterns: Paths in the model; `*` stands for any text.
        otherwise: What else is wrong if the Hub does not help, for the message.

    Raises:
        UsageError: the Hub or its cache does not hand them out, or `huggingface_hub` is not installed.
    """
    name = f"{repository}@{revision}" if revision else repository
    start = f"{otherwise}; " if otherwise else f"{name}: "
    try:
        import_hub()
    except ImportError:
        raise UsageError(f"{start}to fetch it from the Hugging Face Hub, {install_hint('hub')}") from None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with unlogged():
            return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except RepositoryNotFoundError:
        why = f"the Hugging Face Hub has no model {repository} that you may read; `hf auth login` names you"
    except RevisionNotFoundError:
        why = f"the Hugging Face Hub has no revision {revision} of {repository}"
    except LocalEntryNotFoundError:
        why = f"the Hugging Face Hub cannot be reached, and its cache does not hold {name}"
    except Exception as error:  # the errors of its HTTP library, which changed twice, and of the disk
        why = f"the Hugging Face Hub does not hand out {name} ({first_line(error)})"
    raise UsageError(start + why)
