"""A small model with custom code and a dot in its name, built from a seed, that does retrieve.

It has the layout of Alibaba-NLP/gte-Qwen2-*: `auto_map` in the hub's `repo--module` form, its own
modeling file, last-token pooling, an end token that `tokenizer.json` does not append, left padding.
Nothing is trained. Every token has a vector of random signs; uniform causal attention adds up the
vectors of a prefix weighted by inverse document frequency, so the last token's state is a random
projection of the text's tf-idf vector. Each token also brings in the product of its vector with
its predecessor's, which stands for the pair: Chinese words are mostly pairs of characters.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from hashlib import shake_256
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from ..errors import UserError
from ..files import atomic, write_json

ID = "embed-repro/IDF-Attention-0.1B"
CORPUS = Path(__file__).parents[3] / "data" / "demo" / "corpus.jsonl"
HIDDEN = 768
END, PAD, UNKNOWN, QUERY = "<|endoftext|>", "<|pad|>", "<|unknown|>", "<|query|>"
SPECIAL = (PAD, UNKNOWN, END, QUERY)  # their position is their id
# Letters from which words outside the corpus are spelled.
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
STOP = """
a about after all also an and any are as at be been before but by can could did do does for from had
has have he her his how i if in into is it its many may more most much must no not of on or other
our out over she should so some such than that the their them then there these they this to under up
was we were what when where which while who whose why will with would you your
的 了 在 是 和 与 有 为 以 于 及 而 就 都 也 着 被 把 从 到 对 之 其 这 那 哪
什 么 吗 呢 个 些 多 少 如 何 怎 样
"""

CONFIGURATION = '''"""Configuration of the demonstration model."""

from transformers import PretrainedConfig


class IDFAttentionConfig(PretrainedConfig):
    model_type = "idf-attention"

    def __init__(self, vocab_size=8, hidden_size=8, is_causal=True, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.is_causal = is_causal
        super().__init__(**kwargs)
'''

MODELING = '''"""Uniform causal attention over token vectors weighted by document frequency."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_idf import IDFAttentionConfig


class IDFAttentionModel(PreTrainedModel):
    config_class = IDFAttentionConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.weight_tokens = nn.Embedding(config.vocab_size, 1)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, input_ids=None, attention_mask=None, return_dict=True, **kwargs):
        """input_ids and attention_mask [batch, length] -> last_hidden_state [batch, length, d]."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        real = attention_mask.to(self.embed_tokens.weight.dtype).unsqueeze(-1)
        vectors = self.embed_tokens(input_ids)
        weights = self.weight_tokens(input_ids) * real
        values = weights * vectors
        pairs = torch.sqrt(weights[:, 1:] * weights[:, :-1]) * vectors[:, 1:] * vectors[:, :-1]
        values[:, 1:] += pairs
        # Equal attention to every token so far, in closed form: a running mean.
        states = values.cumsum(1) / real.cumsum(1).clamp(min=1)
        return BaseModelOutput(last_hidden_state=states) if return_dict else (states,)
'''


def build(output: Path, seed: int, corpus: Path = CORPUS) -> None:
    """Write the model's folder `output` (must not exist); the same seed gives the same bytes.

    Document frequencies come from `corpus`, a BEIR corpus.jsonl. Raises UserError if it isn't one.
    """
    documents = _documents(corpus)
    tokenizer = _tokenizer(documents)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    weights = _weights(tokenizer, documents)
    vectors = np.stack([_signs(token, seed) for token, _ in vocabulary])
    tensors = {"embed_tokens.weight": vectors, "weight_tokens.weight": weights[:, None]}
    with atomic(output) as folder:
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # a shared store is read by others
        (folder / "configuration_idf.py").write_text(CONFIGURATION, encoding="utf-8")
        (folder / "modeling_idf.py").write_text(MODELING, encoding="utf-8")
        for name, value in _settings(len(vocabulary)).items():
            write_json(folder / name, value)


def _documents(corpus: Path) -> list[str]:
    try:
        with open(corpus, encoding="utf-8") as file:
            records = [json.loads(line) for line in file if line.strip()]
        texts = [f"{record.get('title') or ''} {record['text']}" for record in records]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{corpus}: not a BEIR corpus.jsonl ({error!r})") from None
    if not texts:
        raise UserError(f"{corpus}: holds no document")
    return texts


def _tokenizer(documents: list[str]) -> Tokenizer:
    """Lower-case stems of English words, single Chinese characters, pieces for unknown words."""
    # Han characters stand alone, letters and digits form words, everything else is dropped.
    words = Regex(r"\p{Han}|[\p{L}\p{N}&&[^\p{Han}]]+")
    normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"(?<=[a-z]{3})(ies|y)\b"), "i"),
            normalizers.Replace(Regex(r"(?<=[a-z]{3})(ings?|ed|es|s)\b"), ""),
            normalizers.Replace(Regex(r"(?<=[a-z]{3})e\b"), ""),
        ]
    )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"),
        ]
    )
    found = Counter(word for text in documents for word in _words(normalizer, splitter, text))
    known = sorted(word for word in found if len(word) <= 40)
    pieces = [prefix + letter for letter in LETTERS for prefix in ("", "##")]
    tokens = dict.fromkeys([*SPECIAL, *pieces, *known])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _words(normalizer, splitter, text: str) -> Iterator[str]:
    for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
        yield word


def _weights(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Inverse document frequency of each token, float32 [vocabulary]; 0 for special tokens.

    idf = ln(1 + (N - df + 0.5) / (df + 0.5)), BM25's (Robertson and Zaragoza 2009). Function words
    and the letters of spelled-out words count little.
    """
    frequency = Counter(i for text in documents for i in set(tokenizer.encode(text).ids))
    total, size = len(documents), tokenizer.get_vocab_size()
    frequencies = np.array([frequency[i] for i in range(size)])
    weights = np.log1p((total - frequencies + 0.5) / (frequencies + 0.5))
    for token in STOP.split():
        ids = tokenizer.encode(token).ids
        if len(ids) == 1:
            weights[ids[0]] *= 0.1
    for token, number in tokenizer.get_vocab().items():
        if token in SPECIAL:
            weights[number] = 0
        elif re.fullmatch(r"(##)?[a-z0-9]", token):
            weights[number] *= 0.3
    return weights.astype(np.float32)


def _signs(token: str, seed: int) -> np.ndarray:
    """Random signs ±1/√d, float32 [HIDDEN], a function of seed and token alone."""
    bits = np.frombuffer(shake_256(f"{seed}:{token}".encode()).digest(HIDDEN // 8), dtype=np.uint8)
    return (np.unpackbits(bits).astype(np.float32) * 2 - 1) / np.float32(math.sqrt(HIDDEN))


def _settings(vocabulary: int) -> dict[str, object]:
    """File name -> JSON: the configs as a hub repository would hold them."""
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "eos_token": END}
    module = "sentence_transformers.models."
    return {
        "config.json": {
            "architectures": ["IDFAttentionModel"],
            "auto_map": {
                "AutoConfig": f"{ID}--configuration_idf.IDFAttentionConfig",
                "AutoModel": f"{ID}--modeling_idf.IDFAttentionModel",
            },
            "hidden_size": HIDDEN,
            "is_causal": True,
            "max_position_embeddings": 512,
            "model_type": "idf-attention",
            "torch_dtype": "float32",
            "vocab_size": vocabulary,
        },
        "tokenizer_config.json": special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 512,
            "padding_side": "left",
            "add_eos_token": True,
        },
        "special_tokens_map.json": special,
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": module + "Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": module + "Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": module + "Normalize"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_lasttoken": True,
        },
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": f"{QUERY} ", "document": ""},
            "similarity_fn_name": "cosine",
        },
    }
