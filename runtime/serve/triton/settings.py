"""How a model of Triton runs its bundle: the parameters of `config.pbtxt`, which the command writes and the model reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.choice import BackendName
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.limits import MOST_THREADS
from starflow.runtime.plain.validation import Part, one_line
from starflow.runtime.plans.decode_plan import read_students
from starflow.runtime.sampler import Sampler

BUNDLE = "bundle"  # the folder beside `model.py`
PLAN = "plan.json"  # a plan of the user, beside `model.py`


class Settings(Part):
    """Arguments of `Sampler.open`, all of which are text in `config.pbtxt`.

    Attributes:
        plan: `auto`, `sequential`, `student`, `student+N`, or the name of a file beside `model.py`.
        threads: 0 lets a single instance measure which number is faster, and divides the cores among several.
        shape: Height and width of the data; in text `8x12`.
    """

    backend: BackendName = "auto"
    provider: Provider = "cpu"
    variant: str | None = None
    plan: str = "auto"
    threads: int = Field(default=0, ge=0, le=MOST_THREADS)
    shape: tuple[int, int] | None = None
    batch: int | None = None

    @field_validator("shape", mode="before")
    @classmethod
    def _sides(cls, value: Any) -> Any:
        return value.split("x") if isinstance(value, str) else value

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Settings":
        """Settings by their names; UsageError if one is not known, or has a wrong value."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise UsageError(one_line(error, tuple(cls.model_fields))) from None

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, str]) -> "Settings":
        """Settings by their parameters; those in capitals are Triton's own. Errors are those of `of_options`."""
        try:
            return cls.of_options({name: value for name, value in parameters.items() if not name.isupper()})
        except UsageError as error:
            raise UsageError(f"config.pbtxt, parameters: {error}") from None

    def parameters(self) -> dict[str, str]:
        """The parameters, without those that are left open."""
        found = self.model_dump(exclude_none=True) | ({"shape": "{}x{}".format(*self.shape)} if self.shape else {})
        return {name: str(value) for name, value in found.items()}

    def open(self, folder: Path, threads: int) -> Sampler:
        """Open the bundle in the folder of `model.py`.

        Args:
            threads: What 0 threads mean.

        Raises:
            StarflowError: it cannot be opened here.
        """
        options: dict[str, Any] = dict(self)
        is_name = self.plan in ("auto", "sequential") or read_students(self.plan)
        options["plan"] = self.plan if is_name else folder / self.plan
        return Sampler.open(folder / BUNDLE, **options | {"threads": self.threads or threads})
