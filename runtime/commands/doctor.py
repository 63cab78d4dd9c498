"""Tell what this machine can do, and what to install for the rest.

Examples:
  starflow doctor
  starflow doctor --json
"""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starflow.runtime.diagnostics.doctor import Diagnosis


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Examine and print; always 0, because a missing part is an answer and not a failure."""
    from starflow.runtime.diagnostics.doctor import examine

    diagnosis = examine()
    if arguments.json:
        print(json.dumps(dataclasses.asdict(diagnosis)))
    else:
        _print(diagnosis)
    return 0


def _print(diagnosis: "Diagnosis") -> None:
    from rich.table import Table
    from rich.text import Text

    from starflow.runtime.plain.terminal import Terminal
    from starflow.runtime.reports.tables import plain_table

    console = Terminal()
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(diagnosis):
        facts.add_row(Text(name, "bold"), value)
    console.print(facts)
    last = "with what, or what is needed"
    table = plain_table("", "what you can do", last, text=("what you can do", last))
    for ability in diagnosis.abilities:
        verdict = Text("yes", "green") if ability.possible else Text("no", "yellow")
        table.add_row(verdict, ability.what, ability.how)
    console.print(table)


def _facts(diagnosis: "Diagnosis") -> list[tuple[str, str]]:
    machine, gpus = diagnosis.machine, diagnosis.gpus
    rows = [
        ("python", f"{machine.python} on {machine.platform}"),
        ("processor", f"{machine.cores} cores{_gibibytes(machine.memory_bytes)}"),
    ]
    if gpus.found:
        for gpu in gpus.found:
            capability = f"compute capability {gpu.compute_capability}"
            rows.append(("GPU", f"{gpu.name}, {capability}{_gibibytes(gpu.memory_bytes)}"))
        rows.append(("driver", gpus.driver or "unknown"))
    else:
        rows.append(("GPU", f"none: {gpus.problem}"))
    for package in diagnosis.packages:
        rows.append((package.name, ", ".join(filter(None, (package.version, package.note)))))
    for provider in diagnosis.providers:
        problem = f": {provider.problem}" if provider.problem else ""
        rows.append(("provider", f"{provider.name}{'' if provider.loads else f', which does not load{problem}'}"))
    for flavour in diagnosis.tensorrt:
        rows.append((flavour.name, f"{flavour.version}" if flavour.problem is None else flavour.problem))
    for extra in diagnosis.extras:
        state = f"missing {', '.join(extra.missing)}" if extra.missing else "complete"
        rows.append((f"[{extra.name}]", state))
    rows += [("to change", conflict) for conflict in diagnosis.conflicts]
    return rows


def _gibibytes(count: int | None) -> str:
    return f", {count / 2**30:.1f} GiB of memory" if count else ""
