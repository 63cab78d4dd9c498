"""Attack starflow: damaged files, kills, full disks, power losses and races, counted in one table. What is at work, and how far,
is told on standard error.

Everything is drawn from the seed, so a case that is printed can be tried again alone.

Examples:
  python -m tests.attack                                     all of it: 20 minutes on two cores
  python -m tests.attack --short                             a small part of everything, as `make test` runs it
  python -m tests.attack --only bundles:1234                 one damaged bundle
  python -m tests.attack --only "kills:export --force"       all kills of one command
  python -m tests.attack --only "kills:export --force:17"    one kill
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.attack.campaign import FULL, SHORT, Campaign
from tests.attack.file_observer import can_observe, restart_observed
from tests.attack.honest import one_thread
from tests.attack.report import print_table


def main() -> int:
    """Attack, and print; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", metavar="PART[:CASE]", help="one part, one scene of it, or one case, as the list of faults names it"
    )
    parser.add_argument("--short", action="store_true", help="a small part of everything")
    parser.add_argument(
        "--cases", type=int, metavar="N", help="number of damaged artifacts of each kind (default: thousands)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default: 0)")
    parser.add_argument(
        "--minutes", type=float, default=20, help="time after which no further case is tried (default: 20)"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes that try cases at once (default: 2)")
    parser.add_argument("--json", action="store_true", help="print counts and faults as JSON")
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    scratch = place / f"starflow-attack-{os.getpid()}"
    if can_observe():
        restart_observed(scratch)  # the process stays the same, and so does the folder
    one_thread()
    try:
        end = time.monotonic() + 60 * arguments.minutes
        size = SHORT if arguments.short else FULL
        if arguments.cases is not None:
            size = replace(size, cases=dict.fromkeys(size.cases, arguments.cases))
        campaign = Campaign(scratch, arguments.seed, arguments.processes, size, end)
        tallies = campaign.run(arguments.only)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    faults = [
        (f"{part}:{case}", outcome, told) for part, tally in tallies.items() for case, outcome, told in tally.faults
    ]
    if arguments.json:
        counts = {part: dict(tally.counts) for part, tally in tallies.items()}
        print(
            json.dumps({"seed": arguments.seed, "counts": counts, "faults": faults, "unfinished": campaign.unfinished})
        )
    else:
        print_table(tallies)
        for line in campaign.unfinished:
            print(line)
    return int(bool(faults or not tallies))


if __name__ == "__main__":
    sys.exit(main())
