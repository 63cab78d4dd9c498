"""The report of the check: every figure that its stages left behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.stage import Result

from starflow.runtime.plain.atomic_write import atomic_file


def write_report(folder: Path, names: Sequence[str]) -> None:
    """Write report.md from the results of the stages that are there."""
    results = [Result.read(path) for name in names if (path := folder / f"{name}.json").exists()]
    gpu = next((result.facts.get("gpu") for result in results if result.name == "machine"), "an unknown GPU")
    lines = [f"# GPU check on {gpu}", "", "| stage | outcome | seconds | |", "|---|---|---|---|"]
    lines += [f"| {each.name} | {each.outcome} | {each.seconds:.0f} | {each.reason} |" for each in results]
    for result in results:
        if result.facts:
            lines += ["", f"## {result.name}", "", *_shown(result.facts)]
    with atomic_file(folder / "report.md") as path:
        path.write_text("\n".join(lines) + "\n")


def _shown(facts: dict[str, Any]) -> list[str]:
    """Tables of rows, one list entry for each figure, and nothing of what is deeper."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, int | float | str):
            lines.append(f"* {name}: {_figure(value)}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(column for row in value for column in row))
            lines += ["", f"{name}:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_figure(row.get(column, '')) for column in columns)} |" for row in value]
    return lines


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
