"""`starflow generate` on a small bundle."""

import json
from pathlib import Path
from typing import Any

import pytest

from starflow.runtime.command_line import main
from tests.runtime.generation.shard_readers import SET


@pytest.fixture
def generate(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with --json, and read what it prints."""

    def run(out: Path, *words: str, command: str = "generate", settings: tuple[str, ...] = SET) -> dict[str, Any]:
        capsys.readouterr()
        assert main([command, str(tiny_bundle), *settings, "--out", str(out), *words, "--json"]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    return run
