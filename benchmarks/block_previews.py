"""Pictures of a sample on its way: after each flow block, the deep block's first, by `on_block`.

Examples:
  python -m benchmarks.block_previews digits.bundle previews.png --labels 0 1 2 3 4 5 6 7 8 9
  python -m benchmarks.block_previews emoji.bundle previews.png --captions "red apple, noto style" "cat face, noto style"
"""

import argparse
from pathlib import Path

import numpy as np

from starflow.runtime import Sampler
from starflow.runtime.plain.images import grid, write_png

SMALL, ENLARGED = 32, 2  # images up to this side are enlarged so many times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path, help="PNG to write: a row for the noise and one for each flow block")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--labels", type=int, nargs="+")
    wanted.add_argument("--captions", nargs="+")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    condition = arguments.labels or arguments.captions
    with Sampler.open(arguments.bundle) as sampler:
        if len(condition) > sampler.manifest.batch:
            raise SystemExit(
                f"{len(condition)} images: give at most {sampler.manifest.batch}, one batch of this bundle"
            )
        noise = sampler.noise(len(condition), seed=arguments.seed)
        outputs = [noise]
        sampler.generate(noise, condition, guidance=arguments.guidance, on_block=lambda block, x: outputs.append(x))
        rows = [sampler.to_images(x) for x in outputs]
    sheet = grid(np.concatenate(rows), columns=len(condition))
    if rows[0].shape[1] <= SMALL:
        sheet = sheet.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    write_png(arguments.picture, sheet)


if __name__ == "__main__":
    main()
