"""A recipe as a person would write it: YAML with a reason beside each value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Choice:
    """The value of a field of a recipe, and why; no reason where the value speaks for itself."""

    value: Any
    reason: str = ""


Sections = Mapping[str, Mapping[str, Choice]]  # by section and field


def recipe_text(heading: str, sections: Sections) -> str:
    """YAML text; `heading` becomes a comment above, line by line."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    for section, fields in sections.items():
        lines += ["", f"{section}:"]
        for field, choice in fields.items():
            value = yaml.safe_dump(choice.value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
            lines.append(f"  {field}: {value}" + (f" # {choice.reason}" if choice.reason else ""))
    return "\n".join(lines) + "\n"


def recipe_values(sections: Sections) -> dict[str, dict[str, Any]]:
    """The values alone, as a recipe is read."""
    return {section: {field: choice.value for field, choice in fields.items()} for section, fields in sections.items()}
