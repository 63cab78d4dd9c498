"""Dropout (Srivastava et al., 2014) in the layers of both families. It has no parameters and acts in training mode only."""

from torch import nn

from starflow.training.layers.transformer import MLP, Attention


class EmbeddingDropout(nn.Dropout):
    """Dropout of embedded tokens and conditions."""

    def __init__(self) -> None:
        super().__init__(0.0)


def set_dropout(model: nn.Module, *, attention: float, feed_forward: float, embedding: float) -> None:
    """Set how large a share of their values the layers of a model leave out in training."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.dropout = attention
        elif isinstance(module, MLP):
            module.dropout.p = feed_forward
        elif isinstance(module, EmbeddingDropout):
            module.p = embedding
