"""The published 3B text-to-image model's layout, at full size, through the commands a user would run; what every one cost.

Writes files as they are published with random weights (`benchmarks.published_layout`): .pth and YAML, T5-XL's encoder, SD-VAE.
Then: import, export in fp16 for engines, int8 weights for the CPU, inspect, bench (time per token and per cent of memory bandwidth) and
sample: a caption in, a picture of 256x256 out. Prints time and peak memory of each. A stage that went well is not run again
but read from stages.json in the folder, unless --again. Needs 45 GB of disk. With --target it also builds engines, of the flow
and then of text encoder and autoencoder, and prints what was built and what a run of each flow block launches. With --deep-patch the
deep block decodes larger patches, and bench and sample run each shallow block in one pass over all its tokens: weights are random, so
that says how fast it is and nothing of how good.

Examples:
  python -m benchmarks.published_size out/3b
  python -m benchmarks.published_size out/3b-coarse --deep-patch 2     # four of the published deep block's tokens a step
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.published_layout import NAME, write_autoencoder, write_flow, write_text_encoder

from starflow.runtime.bundle.bundle import Bundle
from starflow.training.autoregressive.config import StarflowConfig, block_configs
from starflow.training.published.config import read_config

GIB = 2**30
CAPTION = "a film still of a cat playing piano"
SECONDS = 300  # an image may take
ALLOWED_BYTES = 3 * GIB  # beside 1.25 times the variant's weights
VARIANT = "cpu-int8"


@dataclass(frozen=True)
class Stage:
    """What a command cost, and what it printed.

    Attributes:
        peak_bytes: Resident memory of its process, mapped files included (sampled: what the system reports at the end counts the
            memory of this process, whose copy a child is before it begins).
        anonymous_bytes: Of it not file cache (sampled).
        swapped_bytes: Likewise.
    """

    name: str
    seconds: float
    peak_bytes: int
    anonymous_bytes: int
    swapped_bytes: int
    output: str


def run_stage(name: str, command: list[str]) -> Stage:
    """Run a `starflow` command in its own process and watch its memory; ends the program if it fails."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "starflow.runtime", *command], stdout=subprocess.PIPE, text=True)
    peak = anonymous = swapped = 0
    while (code := child.poll()) is None:
        fields = _memory(child.pid)
        peak = max(peak, fields.get("VmHWM", 0))
        anonymous = max(anonymous, fields.get("RssAnon", 0))
        swapped = max(swapped, fields.get("VmSwap", 0))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    if code:
        sys.exit(f"starflow {' '.join(command)}: failed with status {code}")
    assert child.stdout
    return Stage(name, seconds, peak, anonymous, swapped, child.stdout.read())


def _memory(process: int) -> dict[str, int]:
    """Fields of /proc/PID/status in bytes; empty once the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields if len(field) == 3 and field[2] == "kB"}


def write_published(folder: Path, deep_patch: int) -> None:
    """Write what is published, where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{NAME}.pth").exists():
        write_flow(folder, deep_patch)
    if (found := block_configs(model_of(folder))[-1].patch) != (deep_patch, deep_patch):
        sys.exit(f"{folder}: holds a model whose deep block has patches of {found[0]}; name another folder")
    if not (folder / "t5-xl" / "tokenizer.json").exists():
        pages = sorted(Path("docs").glob("*.md"))  # any text will do to train a tokenizer on
        write_text_encoder(
            folder / "t5-xl", [line for page in pages for line in page.read_text().splitlines() if line.strip()]
        )
    if not (folder / "sd-vae" / "config.json").exists():
        write_autoencoder(folder / "sd-vae")


def model_of(folder: Path) -> StarflowConfig:
    """The configuration of the model in a folder."""
    model = read_config(folder / f"{NAME}.yaml").checkpoint.model
    assert isinstance(model, StarflowConfig)
    return model


def write_one_pass_plan(folder: Path) -> Path:
    """Write the plan that decodes each shallow block in one pass, and the deep block token by token."""
    path, model = folder / "one-pass.json", model_of(folder)
    segment = {"kind": "chunk", "tokens": (model.img_size // model.patch_size) ** 2, "passes": 1}
    blocks = [{"block": block, "segments": [segment]} for block in range(model.num_blocks - 1)]
    path.write_text(json.dumps({"blocks": blocks}))
    return path


def commands(folder: Path, target: str | None, deep_patch: int) -> dict[str, list[str]]:
    """The commands by name, in order."""
    plan = ["--plan", str(write_one_pass_plan(folder))] if deep_patch > 1 else []
    weights, checkpoint, bundle = str(folder / f"{NAME}.pth"), str(folder / "checkpoint"), str(folder / "bundle")
    beside = ["--text-encoder", str(folder / "t5-xl"), "--autoencoder", str(folder / "sd-vae")]
    image = str(folder / "sample.png")
    found = {
        "import": ["import", weights, "--config", str(folder / f"{NAME}.yaml"), "-o", checkpoint, "--half", "--force"],
        "export fp16": ["export", checkpoint, "-o", bundle, "--precision", "fp16", *beside, "--force"],
        "int8 weights": ["calibrate", bundle, "--weights", "int8", "--lowering", "cpu", "--plain"],
        "inspect": ["inspect", bundle, "--hashes", "--json"],
        "bench": ["bench", bundle, "--variant", VARIANT, "--repetitions", "1", "--json", *plan],
        "sample": [
            "sample",
            bundle,
            "--variant",
            VARIANT,
            "--captions",
            CAPTION,
            "--guidance",
            "3.6",
            "--out",
            image,
            "--json",
            *plan,
        ],
    }
    if target:
        build = ["build", bundle, "--target", target, "--variant", "portable-fp16"]
        found[f"build {target}"] = [*build, "--networks", "none", "--kernels", "--force"]
        found[f"networks {target}"] = build  # the engines of the flow are there
    return found


def run_stages(folder: Path, wanted: dict[str, list[str]], *, again: bool) -> dict[str, Stage]:
    """Run what has not run yet; `stages.json` remembers."""
    record = folder / "stages.json"
    known = json.loads(record.read_text()) if record.exists() and not again else {}
    stages = {name: Stage(**values) for name, values in known.items()}
    for name, command in wanted.items():
        if name in stages:
            continue
        print(f"starflow {' '.join(command)}", file=sys.stderr)
        stages[name] = run_stage(name, command)
        record.write_text(json.dumps({each: asdict(stage) for each, stage in stages.items()}, indent=1))
    return {name: stages[name] for name in wanted}


def figures(folder: Path, stages: dict[str, Stage]) -> dict[str, float]:
    """What is asked of the int8 variant: time per token against the floor, time of a picture, its memory."""
    weights = sum(graph.weight_bytes for graph in Bundle.open(folder / "bundle").variant(VARIANT, "cpu").graphs)
    bench = json.loads(stages["bench"].output)
    total = bench["variants"][0]["rows"][-1]
    return {
        "weight_gib": weights / GIB,
        "bandwidth_gb_s": bench["bandwidth"] / 1e9,
        "milliseconds_per_token": total["milliseconds"],
        "gigabytes_per_token": total["bytes"] / 1e9,
        "percent_of_floor": 100 * total["floor_milliseconds"] / total["milliseconds"],
        "image_seconds": stages["sample"].seconds,
        "image_seconds_allowed": SECONDS,
        "peak_gib": stages["sample"].peak_bytes / GIB,
        "peak_gib_allowed": (1.25 * weights + ALLOWED_BYTES) / GIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything goes; kept, and used again")
    parser.add_argument(
        "--deep-patch", type=int, default=1, help="side of the deep block's patches, in latent pixels (default: 1)"
    )
    parser.add_argument("--target", help="build engines for it as well, such as tensorrt-rtx:8.9")
    parser.add_argument("--again", action="store_true", help="run every stage again")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    write_published(arguments.folder, arguments.deep_patch)
    wanted = commands(arguments.folder, arguments.target, arguments.deep_patch)
    stages = run_stages(arguments.folder, wanted, again=arguments.again)
    found = figures(arguments.folder, stages)
    if arguments.json:
        print(json.dumps({"figures": found, "stages": [asdict(stage) for stage in stages.values()]}))
    else:
        for name, stage in stages.items():
            if arguments.target and name.endswith(arguments.target):
                print(stage.output)
        for stage in stages.values():
            print(
                f"{stage.name:<26}{stage.seconds:6.0f} s   peak {stage.peak_bytes / GIB:5.2f} GiB, not counting file cache "
                f"{stage.anonymous_bytes / GIB:5.2f} GiB, swapped {stage.swapped_bytes / GIB:.2f} GiB"
            )
        print(
            f"{VARIANT}: {found['weight_gib']:.2f} GiB of weights; {found['milliseconds_per_token']:.0f} ms a token, which reads "
            f"{found['gigabytes_per_token']:.2f} GB: {found['percent_of_floor']:.0f} % of the memory bandwidth, "
            f"{found['bandwidth_gb_s']:.1f} GB/s"
        )
        print(
            f"a picture: {found['image_seconds']:.0f} s, {SECONDS} allowed; peak {found['peak_gib']:.2f} GiB, "
            f"1.25 x weights + 3 GiB = {found['peak_gib_allowed']:.2f} GiB allowed"
        )
    sys.exit(found["image_seconds"] > SECONDS or found["peak_gib"] > found["peak_gib_allowed"])


if __name__ == "__main__":
    main()
