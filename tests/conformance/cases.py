"""The recorded vectors: one folder per case, one or more calls each (see FORMAT.md beside them)."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

OPERATIONS = {"forward", "reverse", "rope", "label_embedding", "update_prior", "score_denoise", "denoiser"}
UNSUPPORTED_OPTIONS = {
    "temporal_causal": "video",
    "shallow_block_local": "video",
}


@dataclass(frozen=True)
class Case:
    """A recorded model and the calls made of it, in order."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "io.safetensors")

    def unsupported(self) -> str | None:
        """Why the whole case cannot run yet, or None."""
        for option, what in UNSUPPORTED_OPTIONS.items():
            if self.config["constructor"].get(option):
                return f"{what} ({option})"
        return None

    def unsupported_call(self, call: dict[str, Any]) -> str | None:
        """Why one of its calls cannot run yet, or None."""
        return None if call["op"] in OPERATIONS else call["op"]

    def __hash__(self) -> int:
        return hash(self.folder)


def find_cases(vectors: Path) -> list[Case]:
    """Every case folder below `vectors`."""
    return [Case(path.parent) for path in sorted(vectors.glob("*/config.json"))]
