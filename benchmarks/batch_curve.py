"""Throughput and memory by batch: one reading of the weights serves every image of a batch, the caches grow with it.

Exports a model of random weights (see pytorch_comparison) once for each batch and hands each bundle to `starflow bench` in a
process of its own, so that memory is measured from the start. Writes batch-curve.json and batch-curve.png.

Example: python -m benchmarks.batch_curve --size M --out out/batch-curve
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pytorch_comparison import SIZES, random_model
from matplotlib.figure import Figure

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.training.checkpoint import save_checkpoint

VARIANT = "cpu-fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="M")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/batch-curve"), help="folder for the figures and the plot")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        config, model = random_model(*SIZES[arguments.size])
        save_checkpoint(checkpoint, config, model.state_dict())
        del model
        for batch in arguments.batches:
            bundle = Path(folder) / "bundle"
            export_checkpoint(checkpoint, bundle, ExportOptions(batch=batch), replace=True)
            rows.append(measure(bundle, arguments.repetitions))
            print(f"batch {batch}: {rows[-1]['images_per_second']:.3f} images/s", file=sys.stderr)
    (arguments.out / "batch-curve.json").write_text(json.dumps({"size": arguments.size, "rows": rows}, indent=1) + "\n")
    draw(rows, arguments.out / "batch-curve.png", arguments.size)
    show(rows)


def measure(bundle: Path, repetitions: int) -> dict[str, Any]:
    """What `starflow bench` says of a bundle, in a fresh process."""
    command = [sys.executable, "-m", "starflow.runtime", "bench", str(bundle), "--variant", VARIANT, "--json"]
    found = subprocess.run([*command, "--repetitions", str(repetitions)], check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(found.stdout)
    (timing,), (memory,) = told["variants"], told["memory"]
    total = timing["rows"][-1]
    return {
        "batch": timing["batch"],
        "images_per_second": timing["images_per_second"],
        "milliseconds_per_token": total["milliseconds"],
        "spread": total["spread"],
        "percent_of_floor": total["percent_of_floor"],
        "bandwidth_gigabytes_per_second": told["bandwidth"] / 1e9,
        "predicted_bytes": memory["predicted"]["total"],
        "measured_bytes": memory["measured"]["resident"],
        "peak_bytes": memory["measured"]["peak"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table; times faster are images per second against the first batch."""
    print(
        f"{'batch':>5}{'images/s':>10}{'x faster':>10}{'ms/token':>10}{'spread':>8}{'% floor':>9}{'GB/s':>7}"
        f"{'predicted MiB':>15}{'measured':>10}{'differs':>9}{'peak':>9}"
    )
    for row in rows:
        predicted, measured = row["predicted_bytes"], row["measured_bytes"]
        print(
            f"{row['batch']:>5}{row['images_per_second']:>10.3f}"
            f"{row['images_per_second'] / rows[0]['images_per_second']:>10.2f}{row['milliseconds_per_token']:>10.2f}"
            f"{row['spread']:>8.0%}{row['percent_of_floor']:>9.0f}{row['bandwidth_gigabytes_per_second']:>7.1f}"
            f"{predicted / 2**20:>15.1f}{measured / 2**20:>10.1f}{measured / predicted - 1:>9.1%}"
            f"{row['peak_bytes'] / 2**20:>9.1f}"
        )


def draw(rows: list[dict[str, Any]], path: Path, size: str) -> None:
    """Throughput beside memory, both by batch."""
    batches = [row["batch"] for row in rows]
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    speed.plot(batches, [row["images_per_second"] for row in rows], "o-", color="#0072b2", label="measured")
    floors = [row["images_per_second"] * 100 / row["percent_of_floor"] for row in rows]
    speed.plot(batches, floors, ":", color="#1b1e23", label="memory floor")
    speed.set(title=f"size {size}, {VARIANT}", ylabel="images per second")
    memory.plot(batches, [row["measured_bytes"] / 2**20 for row in rows], "o", color="#d55e00", label="measured")
    memory.plot(batches, [row["predicted_bytes"] / 2**20 for row in rows], "-", color="#8a8f98", label="predicted")
    memory.set(title="memory", ylabel="MiB")
    for panel in (speed, memory):
        panel.set(xlabel="batch", xscale="log", ylim=(0, None))
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.minorticks_off()
        panel.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
