"""Findings of Pydantic in our words, one line each; none of its own text may reach a user."""

import math
import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from starflow.runtime.plain.validation import Part, one_line


class Fish(Part):
    kind: Literal["fish"]
    fins: int


class Bird(Part):
    kind: Literal["bird"]
    wings: int


class Model(Part):
    count: int = 1
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    step: Annotated[int, Field(ge=2, lt=9, multiple_of=2)] = 2
    finite: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    flag: bool = True
    name: Annotated[str, Field(min_length=2, max_length=5)] = "name"
    hexadecimal: Annotated[str, Field(pattern="^[0-9a-f]+$")] = "0"
    sizes: Annotated[tuple[int | Literal["S"], ...], Field(min_length=1, max_length=3)] = (1,)
    table: dict[str, int] = Field(default_factory=dict)
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    version: Literal[1] = 1
    fish: Fish | None = None
    animal: Annotated[Fish | Bird, Field(discriminator="kind")] | None = None
    pixels: Annotated[int, Field(le=1 << 20)] = 1
    odd: int = 1
    imaginary: complex = 0j  # of a type that no file of ours holds

    @field_validator("odd")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([], "value: found [], expected named fields"),
        ({"count": "many"}, "count: found 'many', expected a whole number"),
        ({"count": 1.5}, "count: found 1.5, expected a whole number"),
        ({"count": None}, "count: found null, expected a whole number"),
        ({"rate": "fast"}, "rate: found 'fast', expected a number"),
        ({"rate": 0}, "rate: found 0, expected more than 0"),
        ({"rate": 2}, "rate: found 2, expected 1 or less"),
        ({"step": 0}, "step: found 0, expected 2 or more"),
        ({"step": 10}, "step: found 10, expected less than 9"),
        ({"pixels": 1 << 21}, "pixels: found 2097152, expected 1,048,576 or less"),
        ({"step": 3}, "step: found 3, expected a multiple of 2"),
        ({"finite": math.inf}, "finite: found inf, expected a finite number"),
        ({"flag": "perhaps"}, "flag: found 'perhaps', expected true or false"),
        ({"name": 3}, "name: found 3, expected text"),
        ({"name": "n"}, "name: found 'n', expected text of 2 characters or more"),
        ({"name": "long name"}, "name: found 'long name', expected text of 5 characters or less"),
        ({"hexadecimal": "xyz"}, "hexadecimal: found 'xyz', expected text that matches ^[0-9a-f]+$"),
        ({"sizes": 3}, "sizes: found 3, expected a list"),
        ({"sizes": []}, "sizes: found [], expected 1 or more values"),
        ({"sizes": [1, 2, 3, 4]}, "sizes: found [1, 2, 3, 4], expected at most 3 values"),
        ({"sizes": [1, "L"]}, "sizes.1: found 'L', expected a whole number or 'S'"),
        ({"table": []}, "table: found [], expected named fields"),
        ({"precision": "fp8"}, "precision: found 'fp8', expected one of 'fp32', 'fp16' or 'bf16'"),
        ({"version": 2}, "version: found 2, expected 1"),
        ({"fish": {"kind": "fish"}}, "fish.fins: is missing"),
        ({"fish": "carp"}, "fish: found 'carp', expected named fields"),
        ({"animal": {"kind": "cat"}}, "animal.kind: found 'cat', expected one of 'fish', 'bird'"),
        ({"animal": {}}, "animal.kind: is missing"),
        ({"odd": 2}, "odd: must be odd"),
        ({"imaginary": "i"}, "imaginary: found 'i', which does not fit"),
        ({"cuont": 3}, "unknown field cuont; did you mean count?"),
        ({"zzz": 3}, "unknown field zzz"),
        ({"count": "a", "rate": "b", "flag": "c"}, "count: found 'a', expected a whole number; and 2 more"),
        ({"name": "x" * 99}, f"name: found '{'x' * 59}, expected text of 5 characters or less"),
    ],
)
def test_what_is_wrong_is_said_in_our_words(content: Any, line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(content)
    assert one_line(caught.value, tuple(Model.model_fields)) == line
    assert not re.search("Input should|valid (integer|number|string)|pydantic", line)
