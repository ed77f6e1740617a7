"""Which native transformers architectures the packed engine takes, and how. Imports nothing heavy.

`PACKED_MODEL_TYPES` maps a config's `model_type` to its `Family`. A model type that is not here is
for the `flagembedding` engine. The layout says how the engine feeds a family on CUDA:

- `varlen`: sequences end to end without padding; the model's attention goes through transformers'
  attention interface and its positions through `position_ids`.
- `padded`: the family's attention needs what the variable-length kernel lacks (a position bias, a
  soft cap), so rows are padded to a few fixed widths. Always used on CPU, and in float32 by models
  with a sliding window.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """How one architecture is fed.

    `decoder`: attention can run causal or bidirectional, as the staged facts say; an encoder is
    bidirectional only. `padding_offset`: position ids start at the config's `pad_token_id` + 1, as
    RoBERTa's do, not at 0. `prenorm`: a layer is norm, attention, sum, norm, feed-forward, sum,
    under Llama's names for them. `cls`: the class of transformers, where AutoModel picks another.
    """

    layout: Literal["varlen", "padded"] = "varlen"
    decoder: bool = False
    padding_offset: bool = False
    prenorm: bool = False
    cls: str | None = None


_ENCODER = Family()
_ROBERTA = Family(padding_offset=True)
_DECODER = Family(decoder=True)
_LLAMA = Family(decoder=True, prenorm=True)

PACKED_MODEL_TYPES: dict[str, Family] = {
    "bert": _ENCODER,
    "distilbert": _ENCODER,
    "electra": _ENCODER,
    "ernie": _ENCODER,
    "modernbert": _ENCODER,
    "gte": _ENCODER,
    "nomic_bert": _ENCODER,
    "eurobert": _ENCODER,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "data2vec-text": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "mpnet": Family(layout="padded"),  # relative position bias in each layer
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "llama": _LLAMA,
    "ministral3": _LLAMA,
    "gemma": _LLAMA,
    "gemma3_text": _DECODER,
    "gemma2": Family(layout="padded", decoder=True),  # soft-capped attention scores
    # The encoder alone; its bias by distance is made once and handed from layer to layer.
    "t5": Family(layout="padded", cls="T5EncoderModel"),
    "mt5": Family(layout="padded", cls="MT5EncoderModel"),
    "umt5": Family(layout="padded", cls="UMT5EncoderModel"),
}

# What the packed engine does after the transformer; staging sends all else to
# sentence-transformers. `modules`: several poolings, one behind the other.
PACKED_MODULES = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
PACKED_POOLINGS = (
    "mean",
    "cls",
    "last_token",
    "max",
    "weightedmean",
    "mean_sqrt_len_tokens",
    "modules",
)
PACKED_LEAVES_PROMPT_OUT = True
