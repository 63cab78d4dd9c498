"""Conditions of a caller as the arrays that graphs take."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.finite_array import finite_array
from starflow.runtime.plain.whole_number import whole_number


@dataclass(frozen=True)
class Conditions:
    """Conditions of N images and their null counterparts."""

    tokens: NDArray | None = None  # [N, m, width] float32, or None
    null_tokens: NDArray | None = None  # the same shape, or None
    labels: NDArray | None = None  # [N] int64, or None
    null_label: int = 0

    def part(self, index: NDArray) -> "Conditions":
        """The conditions of the images in `index`."""
        tokens, null, labels = (None if v is None else v[index] for v in (self.tokens, self.null_tokens, self.labels))
        return Conditions(tokens, null, labels, self.null_label)


def encode_conditions(
    spec: ConditioningSpec,
    count: int,
    condition: ArrayLike | Sequence[str] | None,
    null_condition: ArrayLike | None,
    *,
    guided: bool,
) -> Conditions:
    """Check a condition and convert it to the arrays that graphs take.

    Args:
        count: Number of images N.
        condition: Class labels [N] (numbers or names), condition tokens [N, m, width] (or [m, width] for all images), or None
            for the null class and for models without conditions.
        null_condition: Null condition tokens [m, width] or [N, m, width], for guided models conditioned on features.

    Raises:
        UsageError: the condition does not fit the model.
    """
    if spec.kind == "none":
        if condition is not None:
            raise UsageError("this model is unconditional; leave the condition out")
        return Conditions()
    if spec.kind == "features":
        return _features(spec, count, condition, null_condition, guided)
    if spec.kind == "class-label":
        labels = _labels(spec, count, condition)
        return Conditions(labels=labels, null_label=spec.num_classes)
    if condition is not None and np.ndim(condition) == 3:
        return _features(spec, count, condition, null_condition, guided)
    tokens = _one_hot(_labels(spec, count, condition), spec.width)
    null = _one_hot(np.array([spec.num_classes]), spec.width)
    return Conditions(tokens=tokens, null_tokens=np.broadcast_to(null, tokens.shape))


def _one_hot(labels: NDArray, width: int) -> NDArray[np.float32]:
    """[N, 1, width]; a table of all classes would take the square of their number."""
    tokens = np.zeros((len(labels), 1, width), np.float32)
    tokens[np.arange(len(labels)), 0, labels] = 1
    return tokens


def _labels(spec: ConditioningSpec, count: int, condition: ArrayLike | Sequence[str] | None) -> NDArray:
    if condition is None:
        return np.full(count, spec.num_classes, np.int64)
    return _for_each(class_labels(spec, condition), count, "labels")


def class_labels(spec: ConditioningSpec, condition: ArrayLike | Sequence[str]) -> NDArray[np.int64]:
    """Labels [n] of a model with classes, from their numbers or names; a single one makes a list.

    Raises:
        UsageError: one of them is no class of the model.
    """
    values = np.atleast_1d(np.asarray(condition))
    names = spec.class_names or ()
    if all(name == str(index) for index, name in enumerate(names)):
        names = ()  # the names are just the numbers
    known = f"0 to {spec.num_classes - 1}" + (f", or {', '.join(names)}" if names else "")
    if values.dtype.kind in "US":
        values = np.array([_label(str(value), names, known) for value in values], np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UsageError(
            f"labels have shape {list(values.shape)} and type {values.dtype}; give one label for each image: {known}"
        )
    outside = values[(values < 0) | (values >= spec.num_classes)]
    if outside.size:
        raise UsageError(f"label {outside[0]} is not a class of this model; it has {known}")
    return values.astype(np.int64)


def _label(value: str, names: Sequence[str], known: str) -> int:
    if value in names:
        return list(names).index(value)
    if (index := whole_number(value)) is not None:
        return index
    raise UsageError(f"label {value!r} is not a class of this model; it has {known}")


def _features(
    spec: ConditioningSpec, count: int, condition: object, null_condition: ArrayLike | None, guided: bool
) -> Conditions:
    if condition is None:
        raise UsageError(f"this model needs a condition: float32 [N, {spec.tokens}, {spec.width}]")
    tokens = _tokens(spec, count, condition, "condition")
    if null_condition is None:
        if guided:
            raise UsageError(f"guidance also needs the null condition: float32 [{spec.tokens}, {spec.width}]")
        return Conditions(tokens=tokens, null_tokens=tokens)  # half of the rows have no effect, since the weight is 0
    return Conditions(tokens=tokens, null_tokens=_tokens(spec, count, null_condition, "null condition"))


def _tokens(spec: ConditioningSpec, count: int, value: object, what: str) -> NDArray:
    return _for_each(finite_array(value, (spec.tokens, spec.width), f"the {what}", single=True), count, what)


def _for_each(array: NDArray, count: int, what: str) -> NDArray:
    if len(array) == 1:
        return np.broadcast_to(array, (count, *array.shape[1:]))
    if len(array) != count:
        raise UsageError(f"{len(array)} {what} for {count} images; give one for all images, or one for each")
    return array
