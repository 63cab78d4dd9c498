"""The options of apple/ml-starflow and apple/ml-tarflow: their names, defaults and meaning for a checkpoint."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from starflow.runtime.plain.errors import CheckpointError
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig

Family = Literal["starflow", "tarflow"]
MODELS: dict[str, type[StarflowConfig] | type[TarflowConfig]] = {"starflow": StarflowConfig, "tarflow": TarflowConfig}

# What the training scripts call options of the model class.
ALIASES = {"blocks": "num_blocks", "channel_size": "in_channels"}

# What the training scripts set when an argument is absent.
_DEFAULTS = {"in_channels": 3, "patch_size": 4, "channels": 512, "num_blocks": 4, "layers_per_block": 8}
ARGUMENT_DEFAULTS: dict[str, dict[str, Any]] = {
    "starflow": {**_DEFAULTS, "img_size": 32, "noise_std": 0.3},
    # img_size has two defaults (64 to train, 32 to sample), so the user has to name it.
    "tarflow": {**_DEFAULTS, "noise_std": 0.05},
}

# Options that matter, but not to the model class.
OTHER_OPTIONS = {
    "starflow": (
        *("vae", "text", "noise_std", "noise_type", "downsample_factor", "scaling_factor"),
        *("mix_aspect", "fps_cond", "cond_noise_level"),
    ),
    "tarflow": ("dataset", "noise_std", "noise_type"),
}
UNSUPPORTED = {
    **dict.fromkeys(("vid_size", "temporal_causal", "shallow_block_local", "local_attn_window"), "video"),
    "use_pretrained_lm": "a deep block from a language model",
}
# Known names that change nothing here: of training, of data, of sampling, and those that the published code does not use.
_IGNORED = (
    "acc batch_size compile dry_run epoch_length epochs fp8 fsdp fsdp_text_encoder grad_clip grad_skip",
    "gradient_checkpoint gradient_checkpoint_mlp latent_norm_regularization logdir loss_scaling lr min_lr",
    "model_config_path resume resume_epoch resume_path sample_freq save_every train_seed use_8bit_adam",
    "use_checkpoint use_checkpoint_mlp wandb_name warmup_steps",
    "caption_column data dataset drop_image drop_label finetuned_vae last_frame_cond no_flip",
    "secondary_batch_size secondary_dataset secondary_img_size secondary_ratio secondary_vid_size",
    "vae_adapter vae_decoder_factor video_to_video wds",
    "aspect_ratio attn_temp cfg ckpt_file denoising_batch_size disable_learnable_denoiser guide_top",
    "jacobi jacobi_block_size jacobi_max_iter jacobi_th num_samples out_fps sample_batch_size seed",
    "self_denoising_lr target_noise_std",
    "adaln denoiser_window noise_embed_denoiser nvp use_mm_attn",
)
IGNORED = frozenset(name for line in _IGNORED for name in line.split())


def canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Our names for the options; a null value counts as absent."""
    return {ALIASES.get(name, name): value for name, value in options.items() if value is not None}


def sort_out(source: str, family: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options that decide something, and the names of those that decide nothing here.

    Raises:
        CheckpointError: an option is unknown, or asks for something that is not supported.
    """
    fields = {*MODELS[family].model_fields, *OTHER_OPTIONS[family]} - {"family"}
    taken, ignored = {}, []
    for name, value in options.items():
        if name in fields:
            taken[name] = value
        elif name in UNSUPPORTED:
            if value and value != "none":
                raise CheckpointError(
                    f"{source}: {name} ({value}) asks for {UNSUPPORTED[name]}, which is not supported yet"
                )
        elif name in IGNORED:
            ignored.append(name)
        else:
            near = difflib.get_close_matches(str(name), [*fields, *ALIASES], n=1)
            hint = f"; did you mean {near[0]}?" if near else f" of {family}"
            raise CheckpointError(f"{source}: unknown option {name}{hint}")
    return taken, tuple(ignored)
