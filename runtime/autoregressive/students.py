"""Students: networks that do a flow block in one pass, and the requests that they were not trained for."""

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.network_spec import StudentSpec
from starflow.runtime.conditions import Conditions
from starflow.runtime.family import Request, RunNetwork
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.decode_plan import DecodePlan, Students


def student_of(manifest: AutoregressiveManifest, block: int) -> StudentSpec:
    """The student of a flow block that has one."""
    return next(student for student in manifest.students if student.block == block)


def students_in(manifest: object, plan: object) -> list[StudentSpec]:
    """The students that a plan runs; none if it is the plan of a continuous flow."""
    if not isinstance(manifest, AutoregressiveManifest) or not isinstance(plan, DecodePlan):
        return []
    return [student_of(manifest, block) for block in sorted(plan.students, reverse=True)]


def blocks_without_steps(manifest: object, plan: object) -> frozenset[int]:
    """The flow blocks whose step graphs a plan does not run, since a student alone makes their tokens."""
    if not isinstance(manifest, AutoregressiveManifest):
        return frozenset()
    if isinstance(plan, Students):
        return frozenset() if plan.passes else frozenset(manifest.student_blocks)
    students = plan.students if isinstance(plan, DecodePlan) else {}
    return frozenset(block for block, student in students.items() if not student.passes)


def student_tokens(
    run: RunNetwork, student: StudentSpec, noise: NDArray, conditions: Conditions, weights: NDArray
) -> NDArray[np.float32]:
    """What a student makes of the input of its flow block, for one batch of the exported size.

    Args:
        run: Runs a network beside the flow.
        noise: [B, T, D] float32, the block's input in block order.
        weights: [B], the guidance weight of each image.

    Returns:
        [B, T, D] float32 in block order.
    """
    given = {"noise": noise, "condition": conditions.tokens, "label": conditions.labels, "guidance": weights}
    inputs = {spec.name: np.ascontiguousarray(given[spec.role], spec.dtype) for spec in student.network.inputs}
    return run(student.network, inputs)


def check_students(manifest: AutoregressiveManifest, plan: DecodePlan, request: Request) -> None:
    """See that a plan's students were trained for a request: for one guidance weight in all flow blocks, in their range.

    Raises:
        UsageError: they were not.
    """
    count = len(manifest.blocks)
    for block in sorted(plan.students):
        low, high = student_of(manifest, block).guidance
        of = f"the student of flow block {block}"
        if request.attention_temperature != 1:
            raise UsageError(f"attention temperature: {of} was trained for 1; use --plan sequential")
        for guidance in set(request.guidance):
            weight = guidance.weight
            if not low <= weight <= high:
                raise UsageError(
                    f"guidance {weight:g}: {of} was trained for {low:g} to {high:g}; give a weight in this range, or use --plan sequential"
                )
            # The blocks above decide what the student is given.
            other = any(guidance.weight_at(above, count) != weight for above in range(block, count))
            if other or (weight and (guidance.annealed or not (guidance.scale and guidance.shift))):
                raise UsageError(
                    f"guidance: {of} was trained for one weight in all flow blocks; leave the other options out, or use --plan sequential"
                )
