"""What a user of the published 3B text-to-image model has on disk, with random numbers for weights.

`starflow_3B_t2i_256x256.pth` and its YAML as apple/ml-starflow publishes them (3.85 billion parameters in six flow blocks; the
buffers that nothing needs included), a folder of T5-XL's encoder with a tokenizer, and a folder of SD-VAE. Configurations are
the published ones; weights are scaled so that activations stay finite, and are half precision to save disk: 11 GB together.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import diffusers
import sentencepiece
import torch
import transformers
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.families import build_flow
from starflow.training.published.config import read_config

NAME = "starflow_3B_t2i_256x256"
# As the YAML has them; what is of training or of data is read and ignored.
OPTIONS: dict[str, Any] = {
    "img_size": 256,
    "txt_size": 128,
    "channel_size": 4,
    "patch_size": 1,
    "channels": 3072,
    "blocks": 6,
    "layers_per_block": "2 2 2 2 2 24",
    "noise_std": 0.3,
    "batch_size": 1024,
    "lr": 6.4e-05,
    "nvp": 1,
    "rope": 1,
    "adaln": 0,
    "sos": 1,
    "seq_order": "L2R",
    "use_softplus": 1,
    "cond_top_only": 1,
    "use_final_norm": 1,
    "vae": "stabilityai/sd-vae-ft-ema",
    "text": "google/flan-t5-xl",
    "cfg": 2.5,
    "drop_label": 0.1,
    "soft_clip": 4,
}
T5_XL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}

# Of weights by the end of their name. T5 does not divide attention scores by the root of the head size; as it is initialised, its
# queries are that much smaller, and random ones of full size would attend to single tokens.
SCALES = {"proj_out.weight": 0.3, "SelfAttention.q.weight": T5_XL["d_kv"] ** -0.5}


class RandomWeights:
    """Tensors of half precision for the parameters of a model.

    Normal numbers come from one pool, as drawing 4 billion takes minutes. Each tensor begins elsewhere in it and its odd length
    keeps rows from repeating: TensorRT stores equal weights once.
    """

    def __init__(self) -> None:
        self._pool = torch.randn((1 << 24) + 7, generator=torch.Generator().manual_seed(0)).half()

    def of(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every parameter; norms scale by one, biases are zero."""
        for name, parameter in model.named_parameters():
            shape = parameter.shape
            if len(shape) < 2:
                norm = name.endswith("norm.weight") and "final_norm" not in name  # which scales by 1 + weight
                yield name, (torch.ones if norm else torch.zeros)(shape, dtype=torch.float16)
            else:
                yield name, self._normal(name, shape)

    def _normal(self, name: str, shape: torch.Size) -> Tensor:
        scale = next((scale for end, scale in SCALES.items() if name.endswith(end)), 1.0)
        count, start = shape.numel(), crc32(name.encode()) % len(self._pool)
        values = self._pool.repeat(-(-(start + count) // len(self._pool)))[start : start + count]
        return values.view(shape) * (scale / shape[-1] ** 0.5)


def write_flow(folder: Path, deep_patch: int = 1) -> tuple[Path, Path]:
    """Write the `.pth` file and its YAML, with patches of that side for the deep block; returns both."""
    weights, config = folder / f"{NAME}.pth", folder / f"{NAME}.yaml"
    patch, shallow = OPTIONS["patch_size"], OPTIONS["blocks"] - 1
    options = OPTIONS | ({"block_patch_sizes": [patch] * shallow + [deep_patch]} if deep_patch != patch else {})
    config.write_text(
        yaml.safe_dump({"arguments": [{name: value} for name, value in options.items()]}, sort_keys=False)
    )
    model = read_config(config).checkpoint.model
    assert isinstance(model, StarflowConfig)
    with torch.device("meta"):
        network = build_flow(model)
    torch.save(dict(RandomWeights().of(network)) | published_buffers(model), weights)
    return weights, config


def published_buffers(model: StarflowConfig) -> dict[str, Tensor]:
    """What the published module registers and saves beside its parameters."""
    tokens = (model.img_size // model.patch_size) ** 2
    positions = tokens + model.txt_size
    rotary = torch.zeros(positions, model.head_dim)
    mask = torch.tril(torch.ones(positions, positions))
    masks = {f"blocks.{block}.attn_mask": mask.clone() for block in range(model.num_blocks)}
    ones = torch.ones(tokens, model.in_channels * model.patch_size**2)
    return masks | {"var": ones, "feat_rope.freqs_cos": rotary, "feat_rope.freqs_sin": rotary.clone()}


def write_text_encoder(folder: Path, texts: list[str]) -> None:
    """Write T5-XL's encoder as a Hugging Face folder; its tokenizer is trained on `texts`."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "spiece"),
        vocab_size=4000,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    transformers.T5Tokenizer.from_pretrained(folder).save_pretrained(folder)
    config = transformers.T5Config(**T5_XL)
    with torch.device("meta"):
        model = transformers.T5EncoderModel(config)
    config.architectures, config.dtype = ["T5EncoderModel"], "float16"
    config.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in RandomWeights().of(model)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def write_autoencoder(folder: Path) -> None:
    """Write SD-VAE as a diffusers folder."""
    torch.manual_seed(0)
    autoencoder: Any = diffusers.AutoencoderKL(**SD_VAE)
    autoencoder.save_pretrained(folder)
