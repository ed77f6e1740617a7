"""Staged folders for the encoding tests: tiny random models of each family, and the real MiniLM."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from embedrepro import files
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # ids as in RoBERTa
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # wide enough that every part of the model shows in the vectors
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16}
SLIDING = {"sliding_window": 6, "layer_types": ["full_attention"] + ["sliding_attention"] * 2}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 16}
T5 = {
    "vocab_size": len(VOCABULARY),
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 30,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
ENCODERS = {
    "bert": ("BertConfig", SIZES | {"type_vocab_size": 2}),
    "roberta": ("RobertaConfig", SIZES),
    "xlm-roberta": ("XLMRobertaConfig", SIZES),
    "camembert": ("CamembertConfig", SIZES),
    "electra": ("ElectraConfig", SIZES | {"embedding_size": 32}),
    "ernie": ("ErnieConfig", SIZES),
    "distilbert": (
        "DistilBertConfig",
        SIZES | {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4},
    ),
    "modernbert": (
        "ModernBertConfig",
        SIZES
        | {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0}
        | {"sep_token_id": 2},
    ),
    "gte": ("GteConfig", SIZES),
    "nomic_bert": ("NomicBertConfig", SIZES),
    "eurobert": ("EuroBertConfig", GROUPED),
    "mpnet": ("MPNetConfig", SIZES),
    "data2vec-text": ("Data2VecTextConfig", SIZES),
    "roberta-prelayernorm": ("RobertaPreLayerNormConfig", SIZES),
    "xlm-roberta-xl": ("XLMRobertaXLConfig", SIZES),
    "t5": ("T5Config", T5 | {"feed_forward_proj": "gated-gelu"}),
    "mt5": ("MT5Config", T5),
    "umt5": ("UMT5Config", T5),
}
DECODERS = {
    "qwen2": ("Qwen2Config", GROUPED | SLIDING | {"use_sliding_window": True}),
    "qwen3": ("Qwen3Config", GROUPED),
    "mistral": ("MistralConfig", GROUPED | {"sliding_window": 6}),
    "llama": ("LlamaConfig", GROUPED),
    "llama yarn": ("LlamaConfig", GROUPED | {"rope_parameters": YARN}),
    "ministral3": (
        "Ministral3Config",
        GROUPED | {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.1}},
    ),
    "qwen3 by flag": ("Qwen3Config", GROUPED | {"use_bidirectional_attention": True}),
    "gemma": ("GemmaConfig", GROUPED),
    "gemma2": ("Gemma2Config", GROUPED | SLIDING | {"query_pre_attn_scalar": 16}),
    "gemma3_text": ("Gemma3TextConfig", GROUPED | SLIDING | {"query_pre_attn_scalar": 16}),
}

DECODERS["gemma3_text bidirectional"] = (
    DECODERS["gemma3_text"][0],
    DECODERS["gemma3_text"][1] | {"use_bidirectional_attention": True},
)


def tokenizer(end: bool) -> transformers.PreTrainedTokenizerFast:
    """Words split at spaces; `<s> … </s>` around them, or only `</s>` after."""
    rust = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.post_processor = processors.TemplateProcessing(
        single="$A </s>" if end else "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def stage(folder: Path, **facts: object) -> Path:
    """Write `stage.json` with defaults of an encoder, all files listed."""
    defaults = {
        "id": f"test/{folder.name}",
        "revision": None,
        "native": True,
        "engine": "packed",
        "attention": "bidirectional",
        "end_token": None,
        "pooling": "mean",
        "normalize": True,
        "query_prompt": "",
        "passage_prompt": "",
        "max_length": {"query": 64, "passage": 64},
        "dtype": "auto",
        "dimensions": None,
        "hidden_size": 64,
        "trust_remote_code": False,
    }
    names = [path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".txt"]
    listed = {
        name: {"size": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
        for name in names
        if name != "stage.json"
    }
    record = defaults | facts | {"code": {}, "files": listed}
    (folder / "stage.json").write_text(json.dumps(record))
    return folder


def model_class(config: transformers.PreTrainedConfig) -> type[transformers.PreTrainedModel]:
    """The class that holds the encoder alone, or AutoModel's."""
    if "t5" in config.model_type:
        return getattr(transformers, f"{type(config).__name__.removesuffix('Config')}EncoderModel")
    return transformers.MODEL_MAPPING[type(config)]


def tiny(folder: Path, family: str, causal: bool = False, **facts: object) -> Path:
    """A staged folder with a random model of `family`."""
    name, sizes = (ENCODERS | DECODERS)[family]
    decoder = family in DECODERS
    config = getattr(transformers, name)(**sizes)
    if decoder and "bidirectional" not in family:
        config.is_causal = causal
    torch.manual_seed(0)
    model = model_class(config)._from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer(end=decoder).save_pretrained(folder)
    facts = {"architecture": family.split()[0]} | facts
    if decoder:
        direction = "causal" if causal else "bidirectional"
        facts = {"attention": direction, "end_token": "</s>", "pooling": "last_token"} | facts
    return stage(folder, **facts)


def minilm(folder: Path, source: Path, **facts: object) -> Path:
    """The real MiniLM as a staged folder."""
    shutil.copytree(source, folder)
    lengths = {"query": 256, "passage": 256}
    given = {"architecture": "bert", "hidden_size": 384, "max_length": lengths} | facts
    return stage(folder, **given)


def write_corpus(path: Path, texts: list[str], titles: list[str] | None = None) -> Path:
    """A prepared corpus.parquet of these texts."""
    titles = titles or [""] * len(texts)
    chars = [len(f"{title} {text}".strip()) for title, text in zip(titles, texts, strict=True)]
    columns = {
        "id": [f"d{i}" for i in range(len(texts))],
        "title": titles,
        "text": texts,
        "chars": pa.array(chars, pa.int32()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=50)
    return path


def attend_each(query, key, value, offsets, _, longest, __, *, scale, window_size, enable_gqa=None):
    """What the CUDA kernel computes, by plain arithmetic for each sequence."""
    found = torch.empty_like(query)
    ends = offsets.tolist()
    repeat = query.shape[1] // key.shape[1]
    assert enable_gqa in (None, repeat > 1)  # torch < 2.12 isn't told
    for start, stop in zip(ends, ends[1:], strict=False):
        assert stop - start <= longest
        q, k, v = (t[start:stop].transpose(0, 1).float() for t in (query, key, value))
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        scores = q @ k.transpose(1, 2) * scale
        ahead = torch.arange(stop - start)[None] - torch.arange(stop - start)[:, None]
        left, right = window_size
        if right >= 0:
            scores[:, ahead > right] = -torch.inf
        if left >= 0:
            scores[:, -ahead > left] = -torch.inf
        found[start:stop] = (scores.softmax(-1) @ v).transpose(0, 1)
    return found
