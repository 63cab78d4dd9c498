"""Explicit Runge-Kutta methods as Butcher tableaus.

A step of size h from (x, t) evaluates k_i = v(x + h sum_j a_ij k_j, t + c_i h) and ends in x + h sum_i b_i k_i
(Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, section II.1).
"""

from dataclasses import dataclass

from starflow.runtime.plain.errors import UsageError


@dataclass(frozen=True)
class Tableau:
    """An explicit method."""

    order: int  # p, if the error at the end of an interval shrinks as h^p
    nodes: tuple[float, ...]  # c_i, one for each stage
    matrix: tuple[tuple[float, ...], ...]  # a_ij, with i entries in row i
    weights: tuple[float, ...]  # b_i

    @property
    def stages(self) -> int:
        """Number of evaluations of v in a step."""
        return len(self.nodes)


# Each stage depends only on the one before it, so a step needs the same memory for any number of stages.
FIXED_STEP: dict[str, Tableau] = {
    "euler": Tableau(1, (0,), ((),), (1,)),
    "midpoint": Tableau(2, (0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun": Tableau(2, (0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "rk4": Tableau(4, (0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}

# Dormand & Prince (1980), of order 5. Its last stage is evaluated where the next step begins.
DORMAND_PRINCE = Tableau(
    order=5,
    nodes=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    matrix=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    weights=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
)
# The difference between its result and that of the embedded method of order 4, over h: the estimate of a step's error.
DORMAND_PRINCE_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def fixed_step_tableau(solver: str) -> Tableau:
    """The tableau of a solver with fixed steps; UsageError if there is no such solver."""
    if solver not in FIXED_STEP:
        raise UsageError(f"solver {solver!r} is not known; choose {', '.join(FIXED_STEP)} or dopri5")
    return FIXED_STEP[solver]
