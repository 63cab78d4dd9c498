"""8-bit products against float32, by the number of rows: layers of one width, all in turns in one process, medians.

Rows are images, twice as many with guidance, times the tokens of a pass. A step of `--layers` layers is the sum over their products:
queries, keys and values together, the output of attention, and both of the feed-forward network.

Example: python -m benchmarks.int8_products --width 1024 --layers 12 --rows 2 8 32 --threads 1
"""

import argparse
from collections.abc import Mapping, Sequence

from starflow.calibration.weights.ladders import CHUNK, ladders_of
from starflow.calibration.weights.product_times import measure_products, relative_times
from starflow.calibration.weights.treatment import CPU_PRODUCTS, Treatment
from starflow.runtime.plain.processor import processor

COLUMNS = tuple(each for product in CPU_PRODUCTS.values() for each in product)
# From the least exact on, as a calibration orders them.
ORDERED = tuple(product[rung] for rung in (0, 1) for product in (CPU_PRODUCTS["row"], CPU_PRODUCTS["block"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    width, rows = arguments.width, sorted(arguments.rows)
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    times = {shape: measure_products(shape, arguments.layers, rows, ORDERED, arguments.threads) for shape in shapes}
    print(f"{processor()}; {arguments.threads} threads; ms for the products of {arguments.layers} layers of {width}")
    names = ["fp32", *(each.name for each in COLUMNS)]
    print("| rows | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for each in rows:
        sums = [1000 * arguments.layers * sum(taken[name][each] for taken in times.values()) for name in names]
        print(f"| {each} | " + " | ".join(f"{value:.1f}" for value in sums) + " |")
    ladders = ladders_of(ORDERED, {shape: relative_times(taken) for shape, taken in times.items()})
    print(
        f"a calibration with these numbers of rows would offer (time over fp32's; chunks of {CHUNK} tokens are rows, too):"
    )
    for shape in shapes:
        print(f"  {shape[0]} x {shape[1]}: {_ladder(ladders.of(*shape), ladders.times.get(shape, {}))}")


def _ladder(treatments: Sequence[Treatment], times: Mapping[str, float]) -> str:
    return ", ".join(f"{each.name} {times[each.name]:.2f}" if times else each.name for each in treatments)


if __name__ == "__main__":
    main()
