"""The whole way by the commands one would give: the shipped digits, exported, made faster, sampled and timed; emoji from captions.

Example: make demo
"""

import shlex
import subprocess
import sys
from pathlib import Path

CHECKPOINT = Path("examples/digits/checkpoint")
OUT = Path("out/demo")
BUNDLE, PICTURE = OUT / "bundle", OUT / "samples.png"
EMOJI = Path("examples/emoji/checkpoint")
EMOJI_BUNDLE, EMOJI_PICTURE = OUT / "emoji", OUT / "emoji.png"
CAPTIONS = (
    "red apple, noto style",
    "rocket, twemoji style",
    "octopus, fluent style",
    "smiling face with sunglasses, noto style",
    "sunflower, fluent style",
    "penguin, twemoji style",
    "birthday cake, noto style",
    "flag: Japan, twemoji style",
)
COMMANDS = (
    f"starflow export {CHECKPOINT} -o {BUNDLE} --force",
    f"starflow calibrate {BUNDLE} --weights int8 --lowering cpu --images 20",
    f"starflow calibrate {BUNDLE} --plan --guidance 2 --images 10",
    f"starflow calibrate {BUNDLE} --plan --guidance 2 --images 10 --variant auto",
    f"starflow sample {BUNDLE} --variant auto --labels 0-9 --count 100 --columns 10 --guidance 2 --out {PICTURE}",
    f"starflow bench {BUNDLE}",
    f"starflow export {EMOJI} -o {EMOJI_BUNDLE} --batch {len(CAPTIONS)} --force",
    f"starflow sample {EMOJI_BUNDLE} --captions {shlex.join(CAPTIONS)} --count {4 * len(CAPTIONS)} --columns {len(CAPTIONS)}"
    f" --guidance 2 --out {EMOJI_PICTURE}",
)


def main() -> int:
    """Give the commands one after the other, as far as they succeed; the last exit status."""
    root = Path(__file__).parents[1]
    for command in COMMANDS:
        print(f"\n$ {command}", flush=True)
        program, *arguments = shlex.split(command)
        status = subprocess.run([Path(sys.executable).with_name(program), *arguments], cwd=root, check=False).returncode
        if status:
            return status
    print(f"look at {PICTURE} and {EMOJI_PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
