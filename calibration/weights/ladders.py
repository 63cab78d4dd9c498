"""Which treatments a matrix may get, and what each costs.

On the CPU there are two 8-bit products, and which of them is faster depends on the machine. So `measure_ladders` times them for
each shape of matrix, at the numbers of rows that single steps and short chunks have. A treatment that is slower than a more exact
one is left out; so are those that are slower than float32, but for the fastest, which shows what was lost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starflow.calibration.weights.product_times import Shape, measure_products, relative_times
from starflow.calibration.weights.treatment import CPU_PRODUCTS, TREATMENTS, Product, Treatment, WeightType
from starflow.runtime.bundle.manifest import Lowering

CHUNK = 4  # tokens of a pass that counts as much as a single step: plans decode shallow blocks in such passes


@dataclass(frozen=True)
class Ladders:
    """The treatments of each matrix, from the smallest or fastest to the most exact."""

    treatments: tuple[Treatment, ...]
    # By shape and name of a treatment, time over that of float32. Empty: nothing was measured, or nothing is faster, and
    # bytes decide.
    times: Mapping[Shape, Mapping[str, float]] = field(default_factory=dict)

    def of(self, outputs: int, inputs: int) -> tuple[Treatment, ...]:
        """The treatments for a matrix of this shape; none if it is too small, or of a width that no block divides."""
        taken = tuple(each for each in self.treatments if each.takes(outputs, inputs))
        if not self.times:
            return taken if self.treatments[0] in taken else ()
        times = self.times.get((outputs, inputs), {})
        left = tuple(
            each
            for index, each in enumerate(taken)
            if all(times[each.name] < times[exacter.name] for exacter in taken[index + 1 :])
        )
        # The source's type, float32, is more exact than all.
        return tuple(each for each in left if times[each.name] < 1) or left[:1]

    def cost(self, treatment: Treatment, shape: Shape, stored: int, source: int) -> float:
        """What a step pays for a matrix, in bytes that float32 would read in the time.

        Args:
            stored: Bytes of the matrix in this treatment.
            source: Bytes of it in the source's type.
        """
        return source * self.times[shape][treatment.name] if self.times else treatment.cost(stored)


def fixed_ladders(lowering: Lowering, weights: WeightType, product: Product | None = None) -> Ladders:
    """The ladders of a lowering; of 8-bit products on the CPU those of one kind, by default `block`."""
    if (lowering, weights) == ("cpu", "int8"):
        return Ladders(CPU_PRODUCTS[product or "block"])
    return Ladders(TREATMENTS[lowering, weights])


def measure_ladders(shapes: Mapping[Shape, int], rows: Sequence[int], threads: int) -> Ladders:
    """The ladders of 8-bit products on this CPU.

    Args:
        shapes: How many matrices of each shape the flow block has that has most of them.
        rows: Numbers of rows that products will have, all of which count alike.
        threads: Threads within an operator.
    """
    # From the least exact on: a row's scale serves more activations than a block's.
    ordered = tuple(product[rung] for rung in (0, 1) for product in (CPU_PRODUCTS["row"], CPU_PRODUCTS["block"]))
    times = {
        shape: relative_times(measure_products(shape, count, rows, ordered, threads))
        for shape, count in shapes.items()
        if ordered[0].takes(*shape)
    }
    return ladders_of(ordered, times)


def ladders_of(ordered: tuple[Treatment, ...], times: Mapping[Shape, Mapping[str, float]]) -> Ladders:
    """Ladders by measured times; where nothing is faster than float32 for any shape, those of the less slow product."""
    if any(taken < 1 for each in times.values() for taken in each.values()):
        return Ladders(ordered, times)
    products: tuple[Product, ...] = ("block", "row")  # of two that take as long, the more exact

    def slowness(product: Product) -> float:
        name = CPU_PRODUCTS[product][0].name
        return math.prod(taken[name] for taken in times.values() if "int8" in taken and "int8-row" in taken)

    least: Product = min(products, key=slowness)
    return fixed_ladders("cpu", "int8", least)
