"""Tiny real models: random weights of a size that leaves nothing trivial, written as checkpoints."""

from pathlib import Path
from typing import Any

import torch

from starflow.training.checkpoint import save_checkpoint
from starflow.training.config import CheckpointConfig, Conditioning, ImageRange, StarflowConfig, TarflowConfig
from starflow.training.model import FlowModel, build_model

CLASS_MODEL: dict[str, Any] = {
    "in_channels": 1,
    "img_size": 8,
    "patch_size": 2,
    "channels": 32,
    "head_dim": 32,
    "num_blocks": 2,
    "layers_per_block": (1, 2),
    "txt_size": 1,
    "txt_dim": 11,
    "cond_top_only": True,
    "rope": True,
    "sos": True,
    "seq_order": "L2R",
    "use_softplus": True,
    "soft_clip": 4,
    "use_final_norm": True,
}


def randomise(model: FlowModel, seed: int = 0) -> FlowModel:
    """Give every parameter a random value; outputs stay moderate, and no layer is a no-op."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 4.0
            # exp(a) grows fast where nothing clips a
            out = 0.5 if getattr(model.config, "use_softplus", False) else 0.1
            scale = out if name.endswith("proj_out.weight") else 1.0
            noise = torch.randn(parameter.shape, generator=generator) * scale / width**0.5
            parameter.copy_(1 + 0.2 * noise if name.endswith("norm.weight") and "final" not in name else noise)
    return model.eval()


def contextless(model: FlowModel) -> FlowModel:
    """Make no token depend on another one, as in every freshly initialised STARFlow: the network's output is its bias."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj_out.weight"):
                parameter.zero_()
    return model


def class_config(**changes: Any) -> CheckpointConfig:
    """A class-conditional STARFlow of ten classes on 8x8 grey images: 16 tokens of 4."""
    return CheckpointConfig(
        model=StarflowConfig(**{**CLASS_MODEL, **changes}),
        conditioning=Conditioning(kind="class", num_classes=10),
        image=ImageRange(mode="L"),
        noise_std=0.1,
    )


def unconditional_config() -> CheckpointConfig:
    changes = {"txt_size": 0, "txt_dim": 0}
    return CheckpointConfig(model=StarflowConfig(**{**CLASS_MODEL, **changes}), image=ImageRange(mode="L"))


def features_config(tokens: int = 3, width: int = 6) -> CheckpointConfig:
    changes = {"txt_size": tokens, "txt_dim": width}
    conditioning = Conditioning(kind="features", tokens=tokens, width=width)
    return CheckpointConfig(
        model=StarflowConfig(**{**CLASS_MODEL, **changes}), conditioning=conditioning, image=ImageRange(mode="L")
    )


def tarflow_config() -> CheckpointConfig:
    model = TarflowConfig(
        in_channels=1,
        img_size=8,
        patch_size=2,
        channels=32,
        num_blocks=2,
        layers_per_block=1,
        num_classes=3,
        head_dim=16,
    )
    return CheckpointConfig(
        model=model, conditioning=Conditioning(kind="class", num_classes=3), image=ImageRange(mode="L")
    )


def write_checkpoint(folder: Path, config: CheckpointConfig, seed: int = 0) -> FlowModel:
    """Write a random checkpoint; return its model."""
    model = randomise(build_model(config.model), seed)
    save_checkpoint(folder, config, model.state_dict())
    return model
