"""Students as graphs: networks that do a flow block in one pass (`starflow distill` trains them)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from starflow.export.bundle_folder import BundleFolder
from starflow.export.graph_size import GraphSize
from starflow.export.onnx_graph.traced_graph import trace
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.bundle.network_spec import StudentFigures, StudentSpec
from starflow.runtime.plain.errors import UsageError
from starflow.training.students.folder import read_figures, read_student
from starflow.training.students.network import Student


class StudentExporter:
    """Writes one student of a bundle.

    Args:
        folder: The student's, written by `starflow distill`.
        teacher: SHA-256 of the weights file of the checkpoint that is exported.

    Raises:
        UsageError: there is no such folder, or the student was distilled from another checkpoint.
        CheckpointError: it does not hold a student, or is damaged.
    """

    def __init__(self, folder: Path, teacher: str) -> None:
        self.folder, self._student, figures = folder, read_student(folder), read_figures(folder)
        config = self._student.config
        if config.teacher != teacher:
            raise UsageError(
                f"--student {folder}: was distilled from another checkpoint, sha256 {config.teacher[:16]}; this one has "
                f"{teacher[:16]}"
            )
        self.block = config.block
        self._figures = StudentFigures(**figures.model_dump()) if figures else None

    def check(self, sizes: Iterable[GraphSize], given: ConditioningSpec) -> None:
        """UsageError if the student was not trained for a size or the condition of the bundle."""
        model, block = self._student.config.model, self._student.config.of_teacher
        trained = (model.in_channels, model.img_size, model.img_size)
        for size in sizes:
            if size.data_shape != trained:
                shape, own = ("x".join(map(str, each[1:])) for each in (size.data_shape, trained))
                raise UsageError(f"--student {self.folder}: works at {own} only; leave out it or --shape {shape}")
        tokens = getattr(model, "txt_size", 0) if block.condition == "prefix" else given.tokens
        if given.tokens != tokens:
            raise UsageError(
                f"--student {self.folder}: was trained for {tokens} condition tokens; leave out it or --condition-tokens {given.tokens}"
            )

    def write(self, folder: BundleFolder, sizes: Mapping[str, GraphSize], given: ConditioningSpec) -> list[StudentSpec]:
        """Write graphs of every size over one file of weights, all in float32.

        `sizes` are those of the data, by what the names of their graphs end in.
        """
        student, name = self._student, f"student{self.block}"
        tensors = {key: partial(_array, value) for key, value in student.state_dict().items()}
        tensors |= {
            key: partial(_array, value) for key, value in student.named_buffers()
        }  # those that are not saved as well
        graphs = {}
        with folder.shared_weights(name, tensors) as weights:
            for suffix, size in sizes.items():
                folder.step(f"student of flow block {self.block}{suffix}")
                graphs[suffix] = trace(name, student, _tokens, self._inputs(size.batch, given), "tokens").over(weights)
        file, config = folder.file(weights.file.path), student.config
        return [
            StudentSpec(
                block=self.block,
                teacher=config.teacher,
                guidance=config.guidance,
                figures=self._figures,
                network=folder.network(graph, file, f"{name}.fp32{suffix}"),
            )
            for suffix, graph in graphs.items()
        ]

    def _inputs(self, batch: int, given: ConditioningSpec) -> dict[str, Tensor]:
        model, block = self._student.config.model, self._student.config.of_teacher
        rows, columns = block.grid(model.img_size, model.img_size)
        inputs = {"noise": torch.empty(batch, rows * columns, block.token_dim), "guidance": torch.empty(batch)}
        if block.condition == "prefix":
            inputs["condition"] = torch.empty(batch, given.tokens, given.width)
        elif block.condition == "class" and given.num_classes:
            inputs["label"] = torch.empty(batch, dtype=torch.int64)
        return inputs


def _tokens(student: Student, noise: Tensor, guidance: Tensor, condition: Tensor | None = None) -> Tensor:
    """What a student makes; a label may be that of the null class, as in every graph."""
    if condition is not None and not condition.is_floating_point():
        classes = getattr(student.config.model, "num_classes", 0)
        condition = torch.where(condition == classes, -1, condition)
    made: Tensor = student(noise, condition, guidance)
    return made


def _array(value: Tensor) -> NDArray:
    array: NDArray = value.detach().numpy()
    return array


def find_students(
    asked: Sequence[str], teacher: str, sizes: Sequence[GraphSize], given: ConditioningSpec
) -> list[StudentExporter]:
    """The students in some folders, in order of their flow blocks.

    Args:
        asked: The folders.
        teacher: See `StudentExporter`, whose errors are raised as well.
        sizes: Of the bundle's graphs.
        given: What the model is conditioned on.

    Raises:
        UsageError: two of them are of the same flow block, or one does not fit the bundle.
    """
    found = sorted((StudentExporter(Path(folder), teacher) for folder in asked), key=lambda each: each.block)
    for student in found:
        student.check(sizes, given)
        (first, *others) = (each.folder for each in found if each.block == student.block)
        if others:
            raise UsageError(
                f"--student {others[0]}: is of flow block {student.block}, and so is {first}; name one of the two"
            )
    return found
