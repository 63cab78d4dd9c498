"""Acceptance on a GPU machine: verify, measure, and compare with PyTorch, within 25 minutes of GPU time.

Runs on the digits and emoji models, on a continuous flow, and on a larger random model, where what a step costs is measured. Every
stage is a process of its own and writes FOLDER/NAME.json as it ends, so that running out of time loses nothing: the next call takes
up what is missing. A stage that this machine has not got what it takes for says so. FOLDER/report.md holds what is there; a stage
that failed makes the exit status 1.

Examples:
  python -m benchmarks.gpu_check out/gpu-check
  python -m benchmarks.gpu_check out/gpu-check --minutes 8 --only machine export steps
  python -m benchmarks.gpu_check out/gpu-check --again steps
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_check.report import write_report
from benchmarks.gpu_check.stage import Large, Result, Setting, run_stage
from benchmarks.gpu_check.stages import STAGES


def main() -> None:
    """Run the stages that are missing, in order, while there is time."""
    arguments = _arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    large = Large(arguments.width, arguments.layers)
    if arguments.stage:
        run_stage(arguments.stage, STAGES[arguments.stage].work, Setting(folder, large, arguments.repetitions))
        return
    end = time.monotonic() + 60 * arguments.minutes
    for name, stage in STAGES.items():
        path = folder / f"{name}.json"
        if (arguments.only and name not in arguments.only) or name in arguments.skip:
            continue
        if path.exists() and name not in arguments.again and Result.read(path).outcome != "failed":
            continue
        left = end - time.monotonic()
        if left < stage.seconds:
            print(f"{name}: not begun, {left:.0f} of the {stage.seconds} seconds it may take are left", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        _run(name, path, min(left, 3 * stage.seconds), arguments)
        result = Result.read(path)
        print(f"  {result.outcome} in {result.seconds:.0f} s {result.reason}", file=sys.stderr, flush=True)
        write_report(folder, list(STAGES))
    print((folder / "report.md").read_text() if (folder / "report.md").exists() else "nothing was run")
    results = [Result.read(path) for name in STAGES if (path := folder / f"{name}.json").exists()]
    sys.exit(any(result.outcome == "failed" for result in results))


def _run(name: str, path: Path, seconds: float, arguments: argparse.Namespace) -> None:
    """Run a stage in a process of its own; what it leaves unsaid is written here."""
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check", str(arguments.folder), "--stage", name]
    for option in ("width", "layers", "repetitions"):
        command += [f"--{option}", str(getattr(arguments, option))]
    start, log = time.monotonic(), path.with_suffix(".log")
    with log.open("w") as output:
        try:
            status = subprocess.run(command, stdout=output, stderr=output, timeout=seconds, check=False).returncode
            reason = f"ended with status {status}; see {log}"
        except subprocess.TimeoutExpired:
            reason = f"took more than {seconds:.0f} s; see {log}"
    if not path.exists():
        Result(name, "failed", time.monotonic() - start, reason).write(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where bundles, results and the report go")
    parser.add_argument("--minutes", type=float, default=25, help="begin no stage that may take longer (default: 25)")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--skip", nargs="+", choices=STAGES, default=[], metavar="STAGE", help="stages to leave out")
    parser.add_argument("--again", nargs="+", choices=STAGES, default=[], metavar="STAGE", help="run what has run")
    parser.add_argument("--repetitions", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--width", type=int, default=2048, help="width of the larger model (default: 2048)")
    parser.add_argument("--layers", type=int, default=12, help="its layers (default: 12)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
