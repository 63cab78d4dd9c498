"""What a flow block's matrices and caches may become: every treatment of every matrix, rounded and ready to be measured."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.weights.gptq import gptq
from starflow.calibration.weights.graph_edit import Replacement
from starflow.calibration.weights.input_scaling import choose_scales, output_error
from starflow.calibration.weights.ladders import Ladders
from starflow.calibration.weights.layer_inputs import LayerInputs, ProductInputs
from starflow.calibration.weights.number_format import (
    QuantizedMatrix,
    WeightFormat,
    best_scales,
    largest_scales,
    nearest_codes,
)
from starflow.calibration.weights.step_graph_weights import Linear, Norm, StepGraphWeights
from starflow.calibration.weights.treatment import SCALE_TYPES, Treatment
from starflow.runtime.bundle.manifest import Lowering

HESSIAN_BYTES = 1 << 30  # of second moments held at a time


def round_to_nearest(
    weights: StepGraphWeights, linear: Linear, treatment: Treatment, lowering: Lowering
) -> Replacement:
    """A matrix whose every value becomes the nearest code."""
    matrix, block = weights.array(linear.weight).astype(np.float32), treatment.block(linear.inputs) or linear.inputs
    scales = largest_scales(matrix, treatment.format, block, SCALE_TYPES[lowering])
    return Replacement(nearest_codes(matrix, scales, treatment.format), treatment.wide, treatment.by_row)


class BlockCandidates:
    """What may take the place of the weights of a flow block, or of its student: every matrix, rounded in every treatment.

    Args:
        weights: The graph in float32.
        recorder: Shows what its products are given.
        ladders: The treatments of each shape.
        lowering: What the matrices are for: on `cpu` activations are rounded as well.
    """

    def __init__(
        self, weights: StepGraphWeights, recorder: ProductInputs, ladders: Ladders, lowering: Lowering
    ) -> None:
        self.weights, self._ladders, self._lowering = weights, ladders, lowering
        # By name of a cache input, the largest magnitude in each channel, [kv_heads, head_size]; of the cpu lowering,
        # whose caches may be quantised.
        self.cache_peaks: Mapping[str, NDArray] = recorder.cache_peaks() if lowering == "cpu" else {}
        self.scales: dict[Norm, NDArray] = {}  # of the norms whose outputs are scaled
        self.plain: dict[str, Replacement] = {}  # by matrix, rounded plainly in its first treatment
        self.calibrated: dict[str, dict[str, Replacement]] = {}  # by matrix and treatment
        self.output_errors: dict[str, tuple[float, float]] = {}  # by matrix: of the outputs, plain and calibrated
        linears = [each for each in weights.linears.values() if ladders.of(each.outputs, each.inputs)]
        for group in _groups(linears, weights.norms):
            inputs = recorder.record(group)
            scaled = self._scale(group, inputs)
            for linear in group:
                self._round(linear, inputs[linear.weight], scaled.get(linear.weight))

    def _scale(self, group: Sequence[Linear], inputs: Mapping[str, LayerInputs]) -> dict[str, NDArray]:
        """Choose scales for the norms before these matrices; by matrix, the scales of its inputs."""
        named, found = {linear.weight: linear for linear in group}, dict[str, NDArray]()
        for norm in self.weights.norms:
            if all(name in named for name in norm.weights):
                linear = named[norm.weights[0]]
                first, size = self._ladders.of(linear.outputs, linear.inputs)[0], linear.inputs
                chosen = choose_scales(
                    [self.weights.array(name).astype(np.float32) for name in norm.weights],
                    inputs[norm.weights[0]],
                    first.format,
                    first.block(size) or size,
                    rounded_inputs=self._lowering == "cpu",
                )
                if (chosen != 1).any():
                    self.scales[norm] = chosen
                    found |= dict.fromkeys(norm.weights, chosen)
        return found

    def _round(self, linear: Linear, inputs: LayerInputs, scales: NDArray | None) -> None:
        name, matrix = linear.weight, self.weights.array(linear.weight).astype(np.float32)
        factors = np.ones(linear.inputs) if scales is None else scales
        scaled = (matrix * factors).astype(np.float32)
        hessian = inputs.hessian / np.outer(factors, factors)
        self.calibrated[name] = {}
        rounded: dict[tuple[WeightFormat, int], QuantizedMatrix] = {}  # treatments may differ in activations alone
        ladder = self._ladders.of(linear.outputs, linear.inputs)
        for treatment in ladder:
            block = treatment.block(linear.inputs)
            if block is None:
                continue
            key = (treatment.format, block)
            if key not in rounded:
                steps = best_scales(scaled, treatment.format, block, SCALE_TYPES[self._lowering], np.diagonal(hessian))
                rounded[key] = gptq(scaled, hessian, steps, treatment.format)
            self.calibrated[name][treatment.name] = Replacement(rounded[key], treatment.wide, treatment.by_row)
        first = ladder[0]
        self.plain[name] = round_to_nearest(self.weights, linear, first, self._lowering)
        calibrated = self.calibrated[name][first.name].matrix.dequantized() / factors
        self.output_errors[name] = (
            output_error(matrix, self.plain[name].matrix.dequantized(), inputs),
            output_error(matrix, calibrated, inputs),
        )


def _groups(linears: Sequence[Linear], norms: Sequence[Norm]) -> list[list[Linear]]:
    """Products whose second moments fit into memory together; those behind one norm stay together."""
    behind = {name: norm for norm in norms for name in norm.weights}
    families: dict[Norm | str, list[Linear]] = {}
    for linear in linears:
        families.setdefault(behind.get(linear.weight, linear.weight), []).append(linear)
    groups: list[list[Linear]] = []
    room = 0
    for family in families.values():
        size = 8 * family[0].inputs ** 2
        if size > room:
            groups.append([])
            room = HESSIAN_BYTES
        groups[-1] += family
        room -= size
    return groups
