"""Does a set of tensors fit a model, and if not, which configuration field disagrees."""

from collections.abc import Mapping

from starflow.runtime.errors import CheckpointError
from starflow.training.model import FlowModel

# Which option decides a parameter's presence and shape, by the part of its name that says so; first match wins.
FIELDS = {
    "sos_embed": "sos, in_channels or patch_size",
    "pos_embed": "rope, img_size, patch_size or channels",
    "class_embed": "num_classes or channels",
    "proj_txt": "txt_size, txt_dim, cond_top_only or channels",
    "proj_in": "in_channels, patch_size or channels",
    "proj_out": "in_channels, patch_size, channels or nvp",
    "final_norm": "use_final_norm or channels",
    "query_norm": "use_qk_norm or head_dim",
    "key_norm": "use_qk_norm or head_dim",
    "post_norm": "use_post_norm or channels",
    "gate_proj": "use_swiglu or channels",
    "up_proj": "use_swiglu or channels",
    "down_proj": "use_swiglu or channels",
    "mlp.main": "use_swiglu, use_bias or channels",
    "attention.qkv": "channels, head_dim, num_heads, num_kv_heads or use_bias",
    "attention.proj": "channels, head_dim, num_heads or use_bias",
    "norm": "norm_type or channels",
    "var": "img_size, patch_size or in_channels",
}


def is_unused(name: str) -> bool:
    """Buffers published checkpoints carry and nothing needs: masks, empty rotary tables, STARFlow's `var`."""
    return name.endswith(".attn_mask") or name in ("feat_rope.freqs_cos", "feat_rope.freqs_sin", "var")


def check_tensors(source: str, shapes: Mapping[str, tuple[int, ...]], model: FlowModel) -> None:
    """Compare the tensors of `source` with a model's parameters.

    Args:
        source: What to call the file in an error.
        shapes: Name -> shape.
        model: May be on the meta device.

    Raises:
        CheckpointError: a tensor is missing, surplus or mis-shaped; it is named with the field that disagrees.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise CheckpointError(f"{source}: {name} {list(shape)} is missing; check {_field(name, model)}")
    for name in sorted(shapes):
        if name not in expected:
            if is_unused(name):
                continue
            raise CheckpointError(f"{source}: {name} {list(shapes[name])} is surplus; check {_field(name, model)}")
        if tuple(shapes[name]) != expected[name]:
            raise CheckpointError(
                f"{source}: {name} is {list(shapes[name])}, the configuration makes it {list(expected[name])};"
                f" check {_field(name, model)}"
            )


def _field(name: str, model: FlowModel) -> str:
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit():
        if int(parts[1]) >= len(model.block_configs):
            return "num_blocks"
        block = model.block_configs[int(parts[1])]
        if "attn_blocks" in parts and int(parts[3]) >= block.layers:
            return "layers_per_block"
        return next((field for part, field in FIELDS.items() if part in name), "the configuration")
    if parts[0] == "denoiser" or "denoiser" in name:
        return "learnable_self_denoiser (not supported yet)"
    return next((field for part, field in FIELDS.items() if part == name), "family and the configuration")
