"""Uploads a bundle to the Hugging Face Hub in one commit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.hub_snapshot import HUB_NAME, import_hub, unlogged
from starflow.runtime.bundle.selection import Selection
from starflow.runtime.plain.errors import UsageError, first_line
from starflow.runtime.plain.install_hint import install_hint

TOKEN_ADVICE = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Destination:
    """Where a bundle goes.

    Attributes:
        repository: `org/name`; it is made if there is none.
        branch: Branch of the commit; it is made if there is none.
        private: Whether a repository that is made is private.
    """

    repository: str
    branch: str = "main"
    private: bool = False

    def __post_init__(self) -> None:
        if "@" in self.repository or not HUB_NAME.fullmatch(self.repository):
            raise UsageError(f"{self.repository}: is no name on the Hugging Face Hub; give org/name")


def check_hub() -> None:
    """UsageError if `huggingface_hub` is not installed."""
    try:
        import_hub()
    except ImportError:
        raise UsageError(f"a push needs huggingface_hub: {install_hint('hub')}") from None


def upload(bundle: Bundle, selection: Selection, beside: Mapping[str, bytes], to: Destination, message: str) -> str:
    """Upload the files of a selection and further ones; the address of the commit.

    Files that the repository holds and the bundle does not are removed where they are parts of an earlier bundle: graphs,
    weights and engines.

    Args:
        bundle: Where the files of the selection lie.
        selection: What to upload.
        beside: Content of further files, by path.
        to: Where to.
        message: The message of the commit.

    Raises:
        UsageError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    bundle.fetch(selection.files)
    contents = {**selection.texts, **beside}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, content) for name, content in contents.items()),
        *(CommitOperationAdd(file.path, bundle.path(file)) for file in selection.files),
    ]
    kept = {operation.path_in_repo for operation in operations}
    try:
        with unlogged():
            api = HfApi(library_name="starflow")
            api.create_repo(to.repository, private=to.private, exist_ok=True)
            if to.branch != "main":
                api.create_branch(to.repository, branch=to.branch, exist_ok=True)
            for name in api.list_repo_files(to.repository, revision=to.branch):
                if name not in kept and re.match(r"(graphs|engines)/", name):
                    operations.append(CommitOperationDelete(name))
            done = api.create_commit(to.repository, operations, commit_message=message, revision=to.branch)
    except Exception as error:  # the errors of its HTTP library, which changed twice, and of the network
        raise UsageError(f"{to.repository}: {_why(error)}") from None
    return str(done.commit_url)


def _why(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hugging Face Hub does not let you write there; {TOKEN_ADVICE}"
    return f"the Hugging Face Hub did not take it ({first_line(error)})"
