"""Mutation testing: break modules on purpose, one small change at a time, and count the changes that no test notices.

Examples:
  python -m tests.mutation                                   all modules
  python -m tests.mutation plans/search ode/ --most 200      some modules, more mutants of each
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from starflow.runtime.reports.tables import plain_table
from tests.mutation.targets import TARGETS
from tests.mutation.trial import survivors

AIM = 0.85


def main() -> int:
    """Mutate, test, and print a table; 1 if a module's score is below the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="parts of the paths of modules (default: all)")
    parser.add_argument("--most", type=int, help="number of mutants of each module (default: 60)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the draw where a module has more mutants (default: 0)"
    )
    parser.add_argument("--minutes", type=float, default=60, help="time limit for all modules together (default: 60)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="modules tested at once (default: all cores)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/mutation"), help="folder for survivors.md (default: %(default)s)"
    )
    arguments = parser.parse_args()
    targets = [t for t in TARGETS if not arguments.modules or any(part in t.path for part in arguments.modules)]
    limit = 60 * arguments.minutes * arguments.processes / len(targets)
    table = plain_table("module", "mutants", "killed", "survived", "score")
    arguments.out.mkdir(parents=True, exist_ok=True)
    written, least = arguments.out / "survivors.md", 1.0
    written.write_text("# Mutants that no test notices\n", encoding="utf-8")
    # A module's process forks again for each mutant, so it starts without threads, and NumPy makes none for small matrices.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = [pool.submit(survivors, t, arguments.most or t.most, arguments.seed, limit) for t in targets]
        for target, job in zip(targets, jobs, strict=True):
            try:
                count, diffs = job.result()
            except RuntimeError as error:
                print(error, flush=True)
                least = 0.0
                continue
            score = 1 - len(diffs) / count if count else 0.0
            least = min(least, score)
            table.add_row(target.path, str(count), str(count - len(diffs)), str(len(diffs)), f"{score:.0%}")
            print(f"{target.path}: {count - len(diffs)} of {count} killed", flush=True)
            with written.open("a", encoding="utf-8") as file:
                file.write(f"\n## {target.path}\n" + "".join(f"\n```diff\n{diff}\n```\n" for diff in diffs))
    Console().print(table)
    print(f"survivors: {written}")
    return int(least < AIM)


if __name__ == "__main__":
    raise SystemExit(main())
