"""Does a set of tensors fit a model, and if not, which configuration field disagrees."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starflow.runtime.plain.errors import CheckpointError
from starflow.training.autoregressive.model import FlowModel
from starflow.training.config import StarflowConfig

Shape = tuple[int, ...]
Fields = tuple[str, ...]

# What decides a size.
WIDTH = ("channels", "top_block_channels")
TOKEN = ("in_channels", "patch_size")
OUTPUT = (*TOKEN, "nvp")
LENGTH = ("img_size", "patch_size", "pt_seq_len")
QUERIES = ("num_heads", "head_dim", *WIDTH)
HEADS = ("num_kv_heads", *QUERIES)

# What decides the sizes of a parameter, axis by axis, by a part of its name; the first match counts.
AXES: dict[str, tuple[Fields, ...]] = {
    "sos_embed": ((), (), TOKEN),
    "pos_embed": (LENGTH, WIDTH),
    "class_embed": (("num_classes",), (), WIDTH),
    "proj_txt.weight": (WIDTH, ("txt_dim",)),
    "proj_txt.bias": (WIDTH,),
    "proj_in.weight": (WIDTH, TOKEN),
    "proj_in.bias": (WIDTH,),
    "proj_out.weight": (OUTPUT, WIDTH),
    "proj_out.bias": (OUTPUT,),
    "query_norm": (("head_dim",),),
    "key_norm": (("head_dim",),),
    "attention.qkv.weight": (HEADS, WIDTH),
    "attention.qkv.bias": (HEADS,),
    "attention.proj.weight": (WIDTH, QUERIES),
    "attn_mask": ((*LENGTH, "txt_size"), (*LENGTH, "txt_size")),
    "var": (LENGTH, TOKEN),
}

DENOISER = -1  # stands for a block: the learned denoiser is made like one, and missing or surplus as a whole

# What decides whether a parameter exists, by a part of its name; the first match counts.
PRESENCE: dict[str, Fields] = {
    "sos_embed": ("sos",),
    "pos_embed": ("rope",),
    "class_embed": ("num_classes",),
    "learnable_self_denoiser.proj_txt": ("conditional_denoiser",),
    "proj_txt": ("txt_size", "cond_top_only"),
    "final_norm": ("use_final_norm",),
    "query_norm": ("use_qk_norm",),
    "key_norm": ("use_qk_norm",),
    "post_norm": ("use_post_norm",),
    "norm.bias": ("norm_type",),
    "attention.qkv.bias": ("use_bias",),
    "attention.proj.bias": ("use_bias",),
    "main.0.bias": ("use_bias", "use_swiglu"),
    "main.2.bias": ("use_bias", "use_swiglu"),
    "proj.bias": ("use_bias", "use_swiglu"),
    "mlp": ("use_swiglu",),
}

# What `top_block_override` sets in place of the model's options.
OVERRIDDEN = {
    "channels",
    "top_block_channels",
    "layers_per_block",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "rope",
    "norm_type",
    "use_swiglu",
    "use_qk_norm",
    "use_post_norm",
    "use_final_norm",
    "use_bias",
}


@dataclass(frozen=True)
class Disagreement:
    """A tensor that is missing (no `found`), surplus (no `expected`) or mis-shaped.

    Attributes:
        fields: The configuration fields that may be wrong.
        rank: 0: its block is missing or surplus as a whole; 1: its layer is; 2: neither.
    """

    name: str
    found: Shape | None
    expected: Shape | None
    fields: Fields
    rank: int

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} {list(self.expected or ())} is missing"
        if self.expected is None:
            return f"{self.name} {list(self.found)} is surplus"
        return f"{self.name} is {list(self.found)}, the configuration makes it {list(self.expected)}"


def is_unused(name: str) -> bool:
    """Buffers published checkpoints carry and nothing needs: masks, empty rotary tables, STARFlow's `var`."""
    return name.endswith(".attn_mask") or name in ("feat_rope.freqs_cos", "feat_rope.freqs_sin", "var")


def check_tensors(source: str, shapes: Mapping[str, Shape], model: FlowModel) -> None:
    """Compare the tensors of `source` with a model's parameters.

    Buffers nothing needs may be absent. Where they are there, their shapes are compared as well: in a model with rotary
    positions nothing else tells the training size and the number of text tokens.

    Args:
        source: What to call the file in an error.
        shapes: Name -> shape.
        model: May be on the meta device.

    Raises:
        CheckpointError: a tensor is missing, surplus or mis-shaped; it is named with the fields that may be wrong, which
            are those that explain all disagreements at once.
    """
    if not _layers(shapes):
        raise CheckpointError(f"{source}: holds no flow block (blocks.0. ...); is it a STARFlow or TARFlow model?")
    disagreements = _disagreements(shapes, model)
    if not disagreements:
        return
    # A missing block explains what else disagrees, and so does a missing layer.
    rank = min(entry.rank for entry in disagreements)
    disagreements = [entry for entry in disagreements if entry.rank == rank]
    first = disagreements[0]
    common = [field for field in first.fields if all(field in other.fields for other in disagreements)]
    *others, last = common or first.fields or ("the configuration",)
    advice = f"check {', '.join(others)} or {last}" if others else f"check {last}"
    if not common and len(disagreements) > 1:
        advice += f"; {len(disagreements)} tensors disagree, for more than one reason: check the family, too"
    raise CheckpointError(f"{source}: {first}; {advice}")


def _disagreements(shapes: Mapping[str, Shape], model: FlowModel) -> list[Disagreement]:
    """Every tensor that differs, in the model's order; surplus ones last."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    expected |= {
        name: _unused_shape(name, shapes[name], model) for name in shapes if is_unused(name) and name not in expected
    }
    ours, theirs = _layers(expected), _layers(shapes)
    entries: list[Disagreement] = []
    fields: Fields
    for name in (*expected, *sorted(shapes.keys() - expected.keys())):
        wanted, found = expected.get(name), tuple(shapes[name]) if name in shapes else None
        if found == wanted:
            continue
        rank = _rank(name, ours, theirs)
        if rank < 2:
            place = _place(name)
            # With as many blocks on both sides, one may still be an identity block on one of them: it owns no parameters.
            blocks_differ = rank == 0 and max(ours, default=-1) != max(theirs, default=-1)
            fields = ("num_blocks", "layers_per_block") if blocks_differ else ("layers_per_block",)
            if place is not None and place[0] == DENOISER:
                fields = ("learnable_self_denoiser",)
        elif found is not None and wanted is not None:
            fields = _shape_fields(name, found, wanted)
        else:
            fields = next((fields for part, fields in PRESENCE.items() if part in name), ())
        entries.append(Disagreement(name, found, wanted, _applying(fields, name, model), rank))
    return entries


def _unused_shape(name: str, shape: Shape, model: FlowModel) -> Shape:
    """The shape of a buffer that nothing needs: the published model sizes it by its options."""
    length = model.length_scale**2
    if name == "var":
        return (length, model.block_configs[0].token_dim)
    if name.endswith(".attn_mask"):
        side = length + (model.config.txt_size if isinstance(model.config, StarflowConfig) else 0)
        return (side, side)
    return tuple(shape)


def _place(name: str) -> tuple[int, int] | None:
    """Block (or `DENOISER`) and layer (-1: none) a parameter belongs to; None outside of these."""
    parts = name.split(".")
    if parts[0] == "learnable_self_denoiser":
        block, inside = DENOISER, parts[1:]
    elif len(parts) >= 3 and parts[0] == "blocks" and parts[1].isdecimal():
        block, inside = int(parts[1]), parts[2:]
    else:
        return None
    in_layer = len(inside) > 1 and inside[0] == "attn_blocks" and inside[1].isdecimal()
    return block, int(inside[1]) if in_layer else -1


def _layers(names: Iterable[str]) -> dict[int, int]:
    """Number of layers of every block, and of the denoiser, that owns parameters."""
    layers: dict[int, int] = {}
    for place in (_place(name) for name in names if not is_unused(name)):
        if place is not None:
            layers[place[0]] = max(layers.get(place[0], 0), place[1] + 1)
    return layers


def _rank(name: str, ours: Mapping[int, int], theirs: Mapping[int, int]) -> int:
    place = _place(name)
    if place is None or is_unused(name):
        return 2
    block, layer = place
    if block not in ours or block not in theirs:
        return 0
    return 1 if layer >= min(ours[block], theirs[block]) else 2


def _shape_fields(name: str, found: Shape, expected: Shape) -> Fields:
    """The fields behind the axes that differ."""
    axes = next((axes for part, axes in AXES.items() if part in name), (WIDTH,) * len(expected))
    if len(found) != len(expected):
        return tuple(dict.fromkeys(field for fields in axes for field in fields))
    differing = [fields for fields, was, wanted in zip(axes, found, expected, strict=True) if was != wanted]
    return tuple(field for field in differing[0] if all(field in fields for fields in differing)) or differing[0]


def _applying(fields: Fields, name: str, model: FlowModel) -> Fields:
    """The fields the model's configuration has, and that matter to the parameter's block."""
    place, top = _place(name), len(model.block_configs) - 1
    if place is None or place[0] != top:
        fields = tuple(field for field in fields if field != "top_block_channels")
    elif getattr(model.config, "top_block_override", None):
        fields = tuple(dict.fromkeys("top_block_override" if field in OVERRIDDEN else field for field in fields))
    return tuple(field for field in fields if field in type(model.config).model_fields)
