"""A Hub on loopback, and a cache of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.hub.loopback_hub import LoopbackHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that is asked in place of the real one; `huggingface_hub` reads these settings when it is imported."""
    from huggingface_hub import constants

    with LoopbackHub().listening() as listening:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, listening.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", listening.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", LoopbackHub.token)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield listening


@pytest.fixture
def environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that asks this Hub."""
    return dict(os.environ) | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
