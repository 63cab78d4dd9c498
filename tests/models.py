"""Tiny real models: random weights of a size that leaves nothing trivial, written as checkpoints."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import save_checkpoint
from starflow.training.config import (
    CheckpointConfig,
    Conditioning,
    ImageRange,
    LatentAutoencoder,
    LatentScaling,
    TextEncoding,
)
from starflow.training.continuous.config import ContinuousMlpConfig, ContinuousTransformerConfig
from starflow.training.continuous.model import ContinuousFlow, time_frequencies
from starflow.training.families import build_flow
from starflow.training.flow import Flow

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


def randomise(model: Flow, seed: int = 0) -> AutoregressiveFlow:
    """Give every parameter a random value; outputs stay moderate, and no layer is a no-op."""
    assert isinstance(model, AutoregressiveFlow)
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


def contextless(model: AutoregressiveFlow) -> AutoregressiveFlow:
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


def patches_config(**more: Any) -> CheckpointConfig:
    """A class-conditional STARFlow whose deep block decodes 4x4 patches, 4 tokens of 16; the others 2x4 and 2x2."""
    changes: dict[str, Any] = {"num_blocks": 3, "layers_per_block": (1, 1, 2), "block_patch_sizes": (2, (2, 4), 4)}
    return class_config(**changes | more)


def unconditional_config() -> CheckpointConfig:
    changes = {"txt_size": 0, "txt_dim": 0}
    return CheckpointConfig(model=StarflowConfig(**{**CLASS_MODEL, **changes}), image=ImageRange(mode="L"))


def features_config(tokens: int = 3, width: int = 6) -> CheckpointConfig:
    changes = {"txt_size": tokens, "txt_dim": width}
    conditioning = Conditioning(kind="features", tokens=tokens, width=width)
    return CheckpointConfig(
        model=StarflowConfig(**{**CLASS_MODEL, **changes}), conditioning=conditioning, image=ImageRange(mode="L")
    )


def denoising_config() -> CheckpointConfig:
    """A STARFlow with text and a learned denoiser that reads it, with the options that other tiny models are without."""
    changes: dict[str, Any] = {
        "learnable_self_denoiser": True,
        "conditional_denoiser": True,
        "layers_per_block": (1, 1),
    }
    changes |= {"num_heads": 2, "num_kv_heads": 1, "norm_type": "rms_norm", "use_swiglu": True, "use_qk_norm": True}
    changes |= {"use_post_norm": True, "use_bias": False, "hf_style_rope": True, "seq_order": "R2L"}
    config = features_config()
    model = StarflowConfig(**config.model.model_dump() | changes)
    return config.model_copy(update={"model": model, "noise_std": 0.3})


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


def write_checkpoint(folder: Path, config: CheckpointConfig, seed: int = 0) -> AutoregressiveFlow:
    """Write a random checkpoint; return its model."""
    model = randomise(build_flow(config.model), seed)
    save_checkpoint(folder, config, model.state_dict())
    return model


def velocity_config(**changes: Any) -> CheckpointConfig:
    """A class-conditional velocity transformer of three classes on 8x8 grey images: 16 tokens of 4."""
    model: dict[str, Any] = {
        "in_channels": 1,
        "img_size": 8,
        "patch_size": 2,
        "channels": 32,
        "layers": 2,
        "head_dim": 16,
        "num_classes": 3,
    }
    classes = changes.get("num_classes", 3)
    conditioning = Conditioning(kind="class", num_classes=classes) if classes else Conditioning()
    if changes.get("txt_size"):
        conditioning = Conditioning(kind="features", tokens=changes["txt_size"], width=changes["txt_dim"])
    return CheckpointConfig(
        model=ContinuousTransformerConfig(**{**model, **changes}),
        conditioning=conditioning,
        image=ImageRange(mode="L"),
    )


def points_config() -> CheckpointConfig:
    """An unconditional velocity field of points in the plane."""
    return CheckpointConfig(
        model=ContinuousMlpConfig(dimensions=2, channels=32, layers=2), image=ImageRange(mode="latent")
    )


def write_velocity(folder: Path, config: CheckpointConfig, seed: int = 0) -> ContinuousFlow:
    """Write a random checkpoint of a continuous flow; return its network, whose every part has a say."""
    assert isinstance(config.model, ContinuousTransformerConfig | ContinuousMlpConfig)
    network = build_flow(config.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 4.0
            scale = 0.15 if "proj_out" in name else 1.0 if name.endswith("weight") and "modulation" not in name else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / width**0.5)
        # As a trained field, it changes slowly in time: solvers shall reach their order with few steps.
        network.get_parameter("time_embed.0.weight").div_(time_frequencies().square().repeat(2))
    save_checkpoint(folder, config, network.state_dict())
    return network.eval()


def write_latent_checkpoint(
    folder: Path, config: CheckpointConfig, autoencoder: nn.Module, pixels: tuple[int, int, int]
) -> AutoregressiveFlow:
    """Write a random checkpoint over the latents of a diffusers autoencoder, scaled by 2 and shifted by 0.1.

    Both of its decoders are random; the noisy one was "trained" with noise of 0.3 on scaled latents.
    """
    from starflow.training.autoencoder.folder import AutoencoderRecord, save_autoencoder
    from starflow.training.autoencoder.network import Autoencoder

    noisy = deepcopy(autoencoder)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.mul_(1.1)
    latent = LatentScaling(scale=2.0, shift=0.1)
    record = AutoencoderRecord(pixel_shape=pixels, latent=latent, noisy_decoder_std=0.3)
    source = folder.parent / f"{folder.name}-autoencoder"
    save_autoencoder(source, Autoencoder(autoencoder), record, noisy=Autoencoder(noisy))
    model = randomise(build_flow(config.model))
    image = ImageRange(mode="L" if pixels[0] == 1 else "RGB")
    update = {"latent": latent, "image": image, "autoencoder": LatentAutoencoder(pixel_shape=pixels)}
    save_checkpoint(folder, config.model_copy(update=update), model.state_dict(), autoencoder=source)
    return model


def write_captioned_latents(folder: Path, text_encoder: Path) -> AutoregressiveFlow:
    """Write a random checkpoint from captions to pixels: 8 tokens of a text encoder of width 32, latents [1, 8, 8], 16x16 grey pixels.

    It has a learned denoiser that reads the text.
    """
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    autoencoder: Any = AutoencoderTiny(1, 1, latent_channels=1, upsampling_scaling_factor=2, **blocks, **widths)
    with torch.no_grad():
        autoencoder.decoder.layers[-1].bias.fill_(0.4)  # pixels that are not all black
    config = features_config(tokens=8, width=32)
    changes = {"channels": 64, "learnable_self_denoiser": True, "conditional_denoiser": True}
    model = StarflowConfig(**config.model.model_dump() | changes)
    text = TextEncoding(encoder=str(text_encoder), template="a {caption}")
    config = config.model_copy(update={"model": model, "text": text, "noise_std": 0.3})
    return write_latent_checkpoint(folder, config, autoencoder, (1, 16, 16))
