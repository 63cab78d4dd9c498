"""Do the data fit a model."""

from starflow.runtime.plain.errors import RecipeError
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.config import Conditioning, ModelConfig
from starflow.training.data.samples import Dataset
from starflow.training.data.shape import shape_fault

CONDITIONED = ("num_classes", "txt_size")  # the fields of a model that say whether it is conditioned


def fit_data(data: Dataset, model: ModelConfig) -> Dataset:
    """The data as a model takes them, without conditions where it takes none; RecipeError if they do not fit."""
    if fault := shape_fault(tuple(data.train.values.shape[1:]), model):
        raise RecipeError(fault)
    if not any(getattr(model, field, 0) for field in CONDITIONED):
        return data.without_conditions()
    has, needs = _needs(data.conditioning, model)
    for field, value in needs.items():
        found = getattr(model, field, "a tarflow, which takes classes only")
        if found != value:
            raise RecipeError(f"model.{field}: found {found}, expected {value}, because the data have {has}")
    return data


def _needs(given: Conditioning, model: ModelConfig) -> tuple[str, dict[str, int]]:
    """What conditions the data hold, and the fields of the model that have to agree."""
    if given.kind == "none":
        return "no labels or features", {field: 0 for field in CONDITIONED if hasattr(model, field)}
    if given.kind == "features":
        return f"features [{given.tokens}, {given.width}]", {"txt_size": given.tokens, "txt_dim": given.width}
    if isinstance(model, StarflowConfig):
        return f"{given.num_classes} classes", {"txt_size": 1, "txt_dim": given.num_classes + 1}
    return f"{given.num_classes} classes", {"num_classes": given.num_classes}
