"""A model some of whose matrices and caches are quantised: its graphs, its size, and its samples."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.weights.cache_edit import quantize_caches
from starflow.calibration.weights.candidates import BlockCandidates
from starflow.calibration.weights.graph_edit import EditedGraph, Replacement, edit_graph, simulate
from starflow.calibration.weights.precision_choice import Choice
from starflow.calibration.weights.results import KEPT
from starflow.calibration.weights.sample_error import candidate, error_given, sample
from starflow.calibration.weights.step_graph_weights import Norm, StepGraphWeights, float_bytes
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Lowering, Variant
from starflow.runtime.traces.autoregressive import RecordedTrace
from starflow.runtime.traces.case import Case

GIVEN_IMAGES = 16  # that single matrices are measured on
Treatments = Mapping[str, str]
"""By matrix, the name of its treatment; matrices that are not named stay as they are."""


def treatments_of(choice: Choice) -> dict[str, str]:
    """The treatments of a choice."""
    return {name: option.name for name, option in choice.items() if option.name != KEPT}


@dataclass(frozen=True)
class QuantisedModel:
    """What a bundle's model becomes by a choice of treatments."""

    bundle: Bundle
    measured: Variant  # the variant that is run: cpu, float32
    source: Variant  # the variant that the new one is made from
    lowering: Lowering
    blocks: dict[int, BlockCandidates]  # by flow block, what may take the place of its weights
    case: Case
    threads: int

    @property
    def smallest(self) -> dict[str, str]:
        """Every matrix in its smallest treatment."""
        return {name: next(iter(kinds)) for block in self.blocks.values() for name, kinds in block.calibrated.items()}

    def bytes(self, chosen: Treatments) -> int:
        """Bytes of weights that a pass over all flow blocks reads."""
        total = sum(graph.weight_bytes for graph in self.source.graphs)
        for block, candidates in self.blocks.items():
            for name, kinds in candidates.calibrated.items():
                if name in chosen:
                    total += kinds[chosen[name]].matrix.bytes - self.source_bytes(block, name)
        return total

    def source_bytes(self, block: int, name: str) -> int:
        """Bytes of a matrix in the source."""
        stored = float_bytes(self.blocks[block].weights, name)
        return stored if self.lowering == "cpu" else stored // 2

    def sample(self, chosen: Treatments, caches: Collection[int] = ()) -> NDArray[np.float32]:
        """Samples of the case; `caches` are the flow blocks whose caches are of 8 bits."""
        graphs = {}
        for block, candidates in self.blocks.items():
            replacements = _replacements(candidates, chosen)
            if replacements or block in caches:
                graphs[block] = self._measurable(block, replacements, candidates.scales)
            if block in caches:
                self._quantize_caches(self.bundle.autoregressive.blocks[block], graphs[block])
        return self._sample(graphs)

    def sample_plainly(self) -> NDArray[np.float32]:
        """Samples of the case with every matrix rounded to its nearest codes."""
        return self._sample({i: self._measurable(i, each.plain, {}) for i, each in self.blocks.items() if each.plain})

    def error_given(self, block: int, chosen: Treatments, trace: RecordedTrace) -> float:
        """Relative error of a flow block's tokens, each given the exact ones before it."""
        candidates = self.blocks[block]
        graph = self._measurable(block, _replacements(candidates, chosen), candidates.scales)
        with candidate(self.bundle, self.measured, {block: graph}) as variant:
            return error_given(self.bundle, variant, block, trace, GIVEN_IMAGES, self.threads)

    def edit(self, graph: StepGraphWeights, block: Block, chosen: Treatments, caches: Collection[int]) -> EditedGraph:
        """The source's graph of a flow block, at any shape and batch size, as the new variant has it."""
        candidates = self.blocks[block.index]
        edited = edit_graph(graph, self.lowering, _replacements(candidates, chosen), candidates.scales)
        if block.index in caches:
            self._quantize_caches(block, edited)
        return edited

    def _measurable(
        self, block: int, replacements: Mapping[str, Replacement], scales: Mapping[Norm, NDArray]
    ) -> EditedGraph:
        weights = self.blocks[block].weights
        if self.lowering == "cpu":
            return edit_graph(weights, "cpu", replacements, scales)
        factors = {name: factor for norm, factor in scales.items() for name in norm.weights}
        matrices = {name: each.matrix.dequantized() / factors.get(name, 1.0) for name, each in replacements.items()}
        return simulate(weights, {name: matrix.astype(np.float32) for name, matrix in matrices.items()})

    def _quantize_caches(self, block: Block, graph: EditedGraph) -> None:
        largest = self.bundle.autoregressive.blocks[block.index].rows
        suffix = "" if block.rows == largest else f".rows{block.rows}"
        quantize_caches(graph, block, self.blocks[block.index].cache_peaks, suffix)

    def _sample(self, graphs: Mapping[int, EditedGraph]) -> NDArray[np.float32]:
        with candidate(self.bundle, self.measured, graphs) as variant:
            return sample(self.bundle, variant, self.case, self.threads)


def _replacements(candidates: BlockCandidates, chosen: Treatments) -> dict[str, Replacement]:
    return {name: kinds[chosen[name]] for name, kinds in candidates.calibrated.items() if name in chosen}
