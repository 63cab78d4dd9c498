"""How weights move: the learning rate, AdamW's groups, and the moving average."""

import math

import torch
from torch import nn

from starflow.training.recipe import RunSettings
from starflow.training.runs.engine import local


def learning_rate_at(step: int, total_steps: int, training: RunSettings) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to `final_learning_rate`, which the last update nearly reaches.

    `step` counts the updates done before this one, `total_steps` those of the whole run.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return training.final_learning_rate + (training.learning_rate - training.final_learning_rate) * cosine


def build_optimizer(model: nn.Module, training: RunSettings) -> torch.optim.AdamW:
    """AdamW with three groups: matrices and embeddings decay by their own rates, norms and biases never."""
    groups: dict[float, list[nn.Parameter]] = {training.weight_decay: [], training.embedding_weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            decay = 0.0
        else:
            decay = training.embedding_weight_decay if "embed" in name else training.weight_decay
        groups[decay].append(parameter)
    described = [{"params": group, "weight_decay": decay} for decay, group in groups.items() if group]
    return torch.optim.AdamW(described, lr=0.0, betas=training.betas, fused=True)


def average_decay_at(step: int, decay: float) -> float:
    """Decay of the moving average after `step` updates: shorter at first, so that early averages are useful."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an fp32 average in place: average = decay * average + (1 - decay) * model; buffers are copied.

    Parameters of the model that do not learn stay as they are.
    """
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    averaged, learning = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
    torch._foreach_lerp_(local(averaged), local(learning), 1.0 - decay)
    for copied, buffer in zip(average.buffers(), model.buffers(), strict=True):
        copied.copy_(buffer)
