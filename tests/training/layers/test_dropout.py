"""Dropout: which values it leaves out, how it scales the others, and when it acts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from starflow.training.layers.dropout import set_dropout
from starflow.training.layers.layer_config import LayerConfig
from starflow.training.layers.transformer import MLP, Attention
from tests.training.test_trainer import STARFLOW, TARFLOW, VELOCITY, recipe

LAYER = LayerConfig(channels=16, heads=2, kv_heads=2, head_dim=8, hidden=64)


def seen_by(module: nn.Module, run: Any) -> Tensor:
    """What a module is given while `run` runs."""
    given: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach().clone()))
    run()
    handle.remove()
    return given[0]


@pytest.mark.parametrize("gated", [False, True])
def test_hidden_values_are_left_out_and_the_others_scaled(gated: bool) -> None:
    torch.manual_seed(0)
    mlp = MLP(LayerConfig(**vars(LAYER) | {"gated_mlp": gated}))
    last = mlp.down_proj if gated else mlp.main[2]
    h = torch.randn(4, 50, 16)
    whole = seen_by(last, lambda: mlp(h))
    set_dropout(mlp, attention=0, feed_forward=0.25, embedding=0)
    found = seen_by(last, lambda: mlp(h))
    kept = found != 0
    assert abs(float(kept.float().mean()) - 0.75) < 0.01
    torch.testing.assert_close(found[kept], whole[kept] / 0.75)
    assert torch.equal(seen_by(last, lambda: mlp.eval()(h)), whole)


def test_weights_of_attention_are_left_out() -> None:
    """With equal logits and values of one, a token that sees S tokens gets multiples of 1 / (S (1 - p))."""
    attention = Attention(LayerConfig(**vars(LAYER) | {"causal": False}))
    nn.init.zeros_(attention.qkv.weight)
    nn.init.zeros_(attention.qkv.bias)
    nn.init.ones_(attention.qkv.bias[32:])  # the values
    set_dropout(attention, attention=0.5, feed_forward=0, embedding=0)
    torch.manual_seed(0)
    found = seen_by(attention.proj, lambda: attention(torch.randn(200, 5, 16), None)) * 5 * 0.5
    torch.testing.assert_close(found, found.round(), atol=1e-5, rtol=0)
    assert abs(float(found.mean()) / 5 - 0.5) < 0.03
    assert (found.round() != found.round()[0, 0, 0]).any()
    attention.eval()
    whole = seen_by(attention.proj, lambda: attention(torch.randn(2, 5, 16), None))
    torch.testing.assert_close(whole, torch.ones_like(whole))


@pytest.mark.parametrize("model", [STARFLOW, TARFLOW, VELOCITY])
def test_embeddings_are_left_out_in_training_only(model: dict[str, Any]) -> None:
    from starflow.training.families import build_flow

    flow = build_flow(recipe(model).model)
    set_dropout(flow, attention=0, feed_forward=0, embedding=0.4)
    first = next(module for module in flow.modules() if isinstance(module, Attention))
    y = flow.encode_labels(torch.arange(8))
    inputs = (torch.randn(8, 1, 8, 8), torch.rand(8), y) if model is VELOCITY else (torch.randn(8, 1, 8, 8), y)
    kept = seen_by(first, lambda: flow(*inputs)) != 0
    assert abs(float(kept.float().mean()) - 0.6) < 0.05
    flow.eval()
    with torch.no_grad():
        one, other = (flow(*inputs) for _ in range(2))
    torch.testing.assert_close(getattr(one, "z", one), getattr(other, "z", other), rtol=0, atol=0)
