"""The layouts of `tests/layouts.py`: architectures, tokenizers, modules, flags, and other kinds."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import adapter_folders as lora
import format_models as formats
import layout_folders as make
import rerankers_made as rankers
import torch
from embedrepro.models.examination import TEXTS
from layout_folders import PROMPTS, change, dense, layer_norm, left, plain, written
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    BoW,
    Dropout,
    Pooling,
    WeightedLayerPooling,
    WordEmbeddings,
    WordWeights,
)
from traps import write

CONFIG = "config_sentence_transformers.json"
BERT = "sentence_bert_config.json"
Maker = Callable[[Path], Path]


@dataclass(frozen=True)
class Layout:
    """One row of the table.

    `facts`: what the user states. `refused`: what the refusal says, a pattern, where it has to be
    refused. `mend`: puts right what sentence-transformers itself gets wrong, with the reason where
    it is defined. `scores`: of a reranker, (snapshot, pairs, settings) to the maker's own scores.
    """

    name: str
    make: Maker
    engine: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    kind: str = "dense"
    id: str = "demo/Tiny-0.1B"
    refused: str | None = None
    trust: bool = True
    pickle: bool = False
    mend: Callable[[Any], None] | None = None
    texts: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] = ()
    scores: Callable[..., Any] | None = None


# Architectures: name in config.json, what its sizes are called there, the engine.

SIZES = make.SIZES | {"bos_token_id": 0, "eos_token_id": 2}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
T5 |= {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
P, F, S = "packed", "flagembedding", "sentence_transformers"
ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (SIZES, P),
    "distilbert": (SIZES | {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}, P),
    "electra": (SIZES | {"embedding_size": 16}, P),
    "ernie": (SIZES, P),
    "modernbert": (SIZES | {"local_attention": 8, "global_attn_every_n_layers": 2}, P),
    "gte": (SIZES, P),
    "nomic_bert": (SIZES, P),
    "eurobert": (GROUPED, P),
    "roberta": (SIZES, P),
    "xlm-roberta": (SIZES, P),
    "camembert": (SIZES, P),
    "data2vec-text": (SIZES, P),
    "roberta-prelayernorm": (SIZES, P),
    "xlm-roberta-xl": (SIZES, P),
    "mpnet": (SIZES, P),
    "albert": (SIZES | {"embedding_size": 16}, F),
    "convbert": (SIZES | {"embedding_size": 32}, F),
    "deberta": (SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, F),
    "deberta-v2": (SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, F),
    "esm": (SIZES | {"position_embedding_type": "rotary", "token_dropout": False}, F),
    "flaubert": (SIZES | {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, F),
    "ibert": (SIZES, F),
    "jina_embeddings_v3": (SIZES, F),
    "layoutlm": (SIZES, F),
    "longformer": (SIZES | {"attention_window": 8}, F),
    "luke": (SIZES | {"entity_vocab_size": 10, "entity_emb_size": 8}, F),
    "megatron-bert": (SIZES, F),
    "mobilebert": (SIZES | {"embedding_size": 16, "intra_bottleneck_size": 32}, F),
    "mra": (SIZES, F),
    "rembert": (SIZES | {"input_embedding_size": 16, "output_embedding_size": 16}, F),
    "roformer": (SIZES | {"embedding_size": 32}, F),
    "squeezebert": (SIZES | {"embedding_size": 32}, F),
    "xlm": (SIZES | {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, F),
    "xmod": (SIZES | {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"}, F),
    "ultrabert": (SIZES, F),
    "splinter": (SIZES, F),
    "clip_text_model": (SIZES, F),
    "big_bird": (SIZES | {"attention_type": "original_full"}, F),
    "nystromformer": (SIZES, F),
    "fnet": (SIZES, F),
    "yoso": (SIZES, F),
    "canine": (SIZES, F),
    "roc_bert": (SIZES | {"pronunciation_vocab_size": 9, "shape_vocab_size": 9}, F),
    "markuplm": (SIZES | {"xpath_unit_hidden_size": 4, "max_depth": 4}, F),
}
DECODERS: dict[str, tuple[dict[str, Any], str]] = {
    "qwen2": (GROUPED, P),
    "qwen3": (GROUPED, P),
    "mistral": (GROUPED | {"sliding_window": 8}, P),
    "llama": (GROUPED, P),
    "ministral3": (GROUPED, P),
    "gemma": (GROUPED, P),
    "gemma2": (GROUPED | {"sliding_window": 8, "query_pre_attn_scalar": 8}, P),
    "gemma3_text": (GROUPED | {"sliding_window": 8}, P),
    "arcee": (GROUPED, F),
    "bloom": (SIZES | {"n_layer": 2, "n_head": 4}, F),
    "cohere": (GROUPED, F),
    "cohere2": (GROUPED | WINDOWS, F),
    "cwm": (GROUPED, F),
    "ernie4_5": (GROUPED, F),
    "exaone4": (GROUPED, F),
    "falcon": (SIZES | {"alibi": False}, F),
    "glm": (GROUPED, F),
    "glm4": (GROUPED, F),
    "gpt2": (SIZES | {"n_positions": 130}, F),
    "gpt_neox": (SIZES, F),
    "granite": (GROUPED, F),
    "granitemoe": (GROUPED, F),
    "helium": (GROUPED, F),
    "hunyuan_v1_dense": (GROUPED, F),
    "lfm2": (GROUPED, F),
    "ministral": (GROUPED, F),
    "mixtral": (GROUPED, F),
    "modernbert-decoder": (SIZES, F),
    "nemotron": (GROUPED, F),
    "olmo": (GROUPED, F),
    "olmo2": (GROUPED, F),
    "opt": (SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}, F),
    "phi": (SIZES, F),
    "phi3": (GROUPED, F),
    "seed_oss": (GROUPED, F),
    "smollm3": (GROUPED, F),
    "stablelm": (GROUPED, F),
    "starcoder2": (GROUPED, F),
    "xglm": (SIZES | {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, F),
}
# What of them is refused, and by which words.
PADS, ATTENDS = "alone and in a padded batch differ", "set attention: under the model"
NO: dict[str, str] = {
    **dict.fromkeys(("convbert", "mobilebert", "nystromformer", "fnet", "yoso"), PADS),
    **dict.fromkeys(("splinter", "clip_text_model", "canine", "markuplm"), ATTENDS),
    "mra": "a text alone is read as causal",  # it approximates: far tokens of a text are not seen
}


def architectures() -> list[Layout]:
    found = []
    for table, modes in (
        (ENCODERS, ("mean_tokens", "cls_token")),
        (DECODERS, ("lasttoken", "mean_tokens")),
    ):
        for name, (sizes, engine) in table.items():
            for mode in modes:
                maker = partial(written, architecture=name, mode=mode, **sizes)
                label = f"{name}, {mode}"
                refused = NO.get(label, NO.get(name))
                found.append(Layout(label, maker, None if refused else engine, refused=refused))
    return found


def encoder_of(family: str, **config: Any) -> Maker:
    return lambda f: plain(f, family=family, head="EncoderModel", **T5 | config)


def llama(**config: Any) -> Maker:
    return lambda f: plain(f, family="Llama", pooling="lasttoken", **SIZES | config)


def variants() -> list[Layout]:
    """Architectures with what changes their arithmetic."""
    qwen = partial(plain, family="Qwen3", pooling="mean")
    return [
        Layout("t5 encoder", encoder_of("T5"), P),
        Layout("t5 encoder, gated", encoder_of("T5", feed_forward_proj="gated-gelu"), P),
        Layout("mt5 encoder", encoder_of("MT5"), P),
        Layout("umt5 encoder", encoder_of("UMT5"), P),
        Layout("t5 encoder, Dense", make.t5, P),
        Layout("qwen3 both ways (is_causal)", lambda f: qwen(f, is_causal=False), P),
        Layout(
            "qwen2 both ways as stated",
            lambda f: plain(f, family="Qwen2", is_causal=False),
            P,
            {"attention": "bidirectional"},
        ),
        Layout(
            "llama both ways",
            lambda f: plain(f, family="Llama", is_causal=False),
            P,
        ),
        Layout("llama, yarn", llama(rope_parameters=YARN), P),
        Layout("llama, llama3 rope", llama(rope_parameters=LLAMA3), P),
        Layout(
            "llama, linear rope",
            llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            P,
        ),
        Layout(
            "qwen2, sliding window",
            lambda f: plain(
                f, family="Qwen2", pooling="lasttoken", use_sliding_window=True, **WINDOWS
            ),
            P,
        ),
        Layout(
            "gemma 3 both ways, beyond its window",
            lambda f: plain(
                f, family="Gemma3Text", use_bidirectional_attention=True, sliding_window=8
            ),
            P,
        ),
        Layout(
            "gemma 3 both ways, two Dense, Normalize",
            lambda f: plain(
                f,
                dense(32, 48, torch.nn.Identity()),
                dense(48, 32, torch.nn.Identity()),
                Normalize(),
                family="Gemma3Text",
                use_bidirectional_attention=True,
                sliding_window=8,
            ),
            P,
        ),
        *(
            Layout(
                f"{name}, its attention as stated",
                partial(written, architecture=name, **ENCODERS[name][0]),
                None if name == "canine" else F,
                {"attention": "bidirectional"},
                refused=PADS if name == "canine" else None,
            )
            for name in ("splinter", "canine")
        ),
        Layout("luke, written anew", lambda f: plain(f, family="Luke"), F),
        Layout("bert with relu", lambda f: plain(f, hidden_act="relu"), P),
        Layout("bert, one layer", lambda f: plain(f, num_hidden_layers=1), P),
        Layout("bert in bfloat16", partial(stored, dtype=torch.bfloat16), P),
        Layout("bert in float16", partial(stored, dtype=torch.float16), P),
        Layout("weights in shards", sharded, P),
        Layout("weights pickled", pickled, P, pickle=True),
        Layout("weights pickled, not allowed", pickled, refused="weights are a pickle"),
        *(
            Layout(f"{family} with its head", make.masked_lm(family), P)
            for family in (
                "ModernBert",
                "DistilBert",
                "Bert",
                "Roberta",
                "XLMRoberta",
                "Electra",
                "MPNet",
            )
        ),
        Layout("Qwen2 with its head", causal_lm("Qwen2"), P),
        Layout("Qwen3 with its head", causal_lm("Qwen3"), P),
    ]


def stored(folder: Path, dtype: torch.dtype) -> Path:
    from safetensors.torch import load_file, save_file

    plain(folder)
    path = folder / "model.safetensors"
    save_file({n: t.to(dtype) for n, t in load_file(path).items()}, path, {"format": "pt"})
    return change(folder, "config.json", dtype=str(dtype).removeprefix("torch."))


def sharded(folder: Path) -> Path:
    from transformers import AutoModel

    plain(folder)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def pickled(folder: Path) -> Path:
    from safetensors.torch import load_file

    plain(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def causal_lm(family: str) -> Maker:
    def made(folder: Path) -> Path:
        plain(folder, family=family, pooling="lasttoken")
        scratch = folder.parent / f"{folder.name}-lm"
        make.transformer(scratch, family, "ForCausalLM")
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(scratch / name, folder / name)
        return folder

    return made


# Tokenizers.


def tokenizers() -> list[Layout]:
    from layout_tokenizers import TOKENIZERS

    return [Layout(name, maker, **given) for name, maker, given in TOKENIZERS]


# Modules and flags of sentence-transformers.


def rows(folder: Path, change_rows: Callable[[list[dict[str, Any]]], Any]) -> Path:
    found = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", change_rows(found) or found)
    return folder


def saved(folder: Path, *modules: Any, **given: Any) -> Path:
    SentenceTransformer(modules=list(modules), device="cpu", **given).save(str(folder))
    return folder


def words(folder: Path, size: int = 24) -> WordEmbeddings:
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    torch.manual_seed(4)
    tokenizer = WhitespaceTokenizer(known(), stop_words=["the"], do_lower_case=True)
    return WordEmbeddings(tokenizer, torch.randn(len(known()), size).numpy())


def known() -> list[str]:
    return sorted({word for text in TEXTS for word in text.lower().split()})


def trunk(folder: Path, **config: Any) -> Transformer:
    return Transformer(str(make.transformer(folder.parent / f"{folder.name}-trunk", **config)))


def layers(folder: Path) -> Path:
    first = trunk(folder)
    first.model.config.output_hidden_states = True
    pooled = WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1)
    return saved(folder, first, pooled, Pooling(32, "mean"))


def routed(folder: Path, **given: Any) -> Path:
    torch.manual_seed(2)
    module = Router.for_query_document(
        query_modules=[trunk(folder), Pooling(32, "cls")],
        document_modules=[
            Transformer(str(make.transformer(folder.parent / "other", family="Roberta"))),
            Pooling(32, "mean"),
        ],
        **given,
    )
    return saved(folder, module, Normalize())


def asym(folder: Path) -> Path:
    """sentence-transformers 2 to 4's name for a Router after a shared trunk."""
    torch.manual_seed(2)
    module = Router.for_query_document(
        query_modules=[dense(32, 16)], document_modules=[dense(32, 16, torch.nn.ReLU())]
    )
    return saved(folder, trunk(folder), Pooling(32, "mean"), module)


def as_asym(folder: Path) -> Path:
    asym(folder)
    return rows(folder, lambda found: found[2].update(type=f"{make.ST}.Asym"))


def dropped(folder: Path) -> Path:
    return plain(folder, Dropout(0.2))


def modules() -> list[Layout]:
    st = partial(Layout, engine=S)
    gelu, relu = torch.nn.GELU(), torch.nn.ReLU()
    return [
        *(
            Layout(f"pooling {mode}", lambda f, mode=mode: plain(f, pooling=mode), P)
            for mode in ("mean", "cls", "max", "weightedmean", "mean_sqrt_len_tokens", "lasttoken")
        ),
        *(
            Layout(
                f"pooling {' + '.join(modes)}", lambda f, modes=modes: plain(f, pooling=modes), P
            )
            for modes in (
                ("cls", "max"),
                ("mean", "max"),
                ("cls", "mean", "max"),
                ("mean", "lasttoken"),
            )
        ),
        *(
            Layout(
                f"pooling {mode} of a decoder",
                lambda f, mode=mode: plain(f, family="Qwen3", pooling=mode),
                P,
            )
            for mode in ("mean", "lasttoken", "weightedmean", "max")
        ),
        Layout("Normalize", lambda f: plain(f, Normalize()), P),
        Layout("Dropout", dropped, P),
        Layout("LayerNorm", lambda f: plain(f, layer_norm()), P),
        Layout("LayerNorm, Normalize", lambda f: plain(f, layer_norm(), Normalize()), P),
        Layout("Dense, tanh", lambda f: plain(f, dense(32, 16)), P),
        Layout("Dense, identity", lambda f: plain(f, dense(32, 16, torch.nn.Identity())), P),
        Layout("Dense, relu", lambda f: plain(f, dense(32, 40, relu)), P),
        Layout("Dense, gelu", lambda f: plain(f, dense(32, 40, gelu)), P),
        Layout("Dense, Normalize", lambda f: plain(f, dense(32, 16), Normalize()), P),
        Layout("Normalize, Dense", lambda f: plain(f, Normalize(), dense(32, 16)), P),
        Layout(
            "Normalize, Dense, Normalize",
            lambda f: plain(f, Normalize(), dense(32, 16), Normalize()),
            P,
        ),
        Layout("Dense, LayerNorm", lambda f: plain(f, dense(32, 32), layer_norm()), P),
        Layout("LayerNorm, Dense", lambda f: plain(f, layer_norm(), dense(32, 48)), P),
        Layout(
            "Dense without a bias",
            lambda f: plain(f, make.Dense(32, 16, bias=False, activation_function=relu)),
            P,
        ),
        Layout("Dense, residual", lambda f: plain(f, make.Dense(32, 32, use_residual=True)), P),
        Layout(
            "Dense, residual, other size",
            lambda f: plain(f, make.Dense(32, 20, use_residual=True)),
            P,
        ),
        Layout("cls and max, Dense", lambda f: plain(f, dense(64, 16), pooling=("cls", "max")), P),
        Layout(
            "Dense after a decoder",
            lambda f: plain(f, dense(32, 16), family="Qwen3", pooling="lasttoken"),
            P,
        ),
        Layout("modules in 0_Transformer", make.in_a_folder, P),
        st("CNN", lambda f: plain(f, CNN(32, 16, kernel_sizes=[1, 3]))),
        Layout("LSTM", lambda f: plain(f, LSTM(32, 8)), refused="can't run it .*module LSTM"),
        st("WeightedLayerPooling", layers),
        st("WordEmbeddings", lambda f: saved(f, words(f), Pooling(24, "mean"))),
        st(
            "WordEmbeddings, Dense",
            lambda f: saved(f, words(f), Pooling(24, "mean"), dense(24, 16)),
        ),
        st(
            "WordEmbeddings, WordWeights",
            lambda f: saved(f, words(f), WordWeights(known(), {"rust": 2.0}), Pooling(24, "mean")),
        ),
        Layout(
            "WordEmbeddings, CNN",
            lambda f: saved(f, words(f), CNN(24, 8), Pooling(24, "mean")),
            refused=r"sentence_transformers \[.*sentence-transformers \[",  # padding is a word
        ),
        st(
            "WordEmbeddings, LSTM",
            lambda f: saved(f, words(f), LSTM(24, 8), Pooling(16, "max")),
            texts=TEXTS,
        ),
        st("BoW", lambda f: saved(f, BoW(["rust", "the", "quick", "night"]))),
        st("BoW, Dense", lambda f: saved(f, BoW(["rust", "the", "quick"]), dense(3, 8))),
        st("StaticEmbedding", make.static),
        st("StaticEmbedding, Normalize", lambda f: saved(f, make.static_module(f), Normalize())),
        st("StaticEmbedding, Dense", lambda f: saved(f, make.static_module(f, 24), dense(24, 8))),
        st("model2vec", make.model2vec),
        st("Router, static queries", make.router),
        st("Router, two transformers", routed),
        st("Router, default route none", lambda f: routed(f, default_route=None)),
        st("Router after the pooling", asym),
        st("Asym by its old name", as_asym),
        st("a module of its own", make.own_module),
        Layout(
            "a module of its own, not trusted",
            make.own_module,
            trust=False,
            refused="runs its own code",
        ),
        Layout(
            "CLIP without what reads images", make.clip, refused="can't run it .*module CLIPModel"
        ),
        Layout(
            "no pooling",
            lambda f: rows(plain(f), lambda r: r[:1]),
            refused="can't run|no Pooling|pooling",
        ),
        Layout(
            "two poolings",
            lambda f: saved(f, trunk(f), Pooling(32, "mean"), Pooling(32, "cls")),
            S,
        ),
        Layout("own code of a native type", make.own_forward, F, {"native": False}),
        Layout("own code that trust asks for", make.own_forward, F),
        Layout(
            "own code of which nobody says anything",
            make.own_forward,
            trust=False,
            refused="code of its own for the model .*set native: true to leave it out",
        ),
        Layout(
            "own code left out", make.own_forward, P, {"native": True}, trust=False, mend=native
        ),
        Layout(
            "own code of a decoder", coded_decoder, refused="set attention: causal or bidirectional"
        ),
        Layout(
            "own code of a decoder, its direction stated",
            coded_decoder,
            P,
            {"attention": "causal"},
            trust=False,
            mend=native,
        ),
    ]


def coded_decoder(folder: Path) -> Path:
    llama()(folder)
    return change(folder, "config.json", auto_map={"AutoModel": "modeling_own.Own"})


def native(peer: Any) -> None:
    """The peer loads with trust off: transformers' own class, as the layout does."""


def as_said(peer: Any) -> None:
    """Its documentation has the first there is of document, passage and corpus, then the default;
    the empty prompts that it fills in itself come before those."""
    peer.prompts = {name: text for name, text in peer.prompts.items() if text}


def settings(**values: Any) -> Maker:
    return lambda f: change(plain(f), CONFIG, **values)


def bert(**values: Any) -> Maker:
    return lambda f: change(plain(f), BERT, **values)


def flags() -> list[Layout]:
    prompt = {"query_prompt": "find: ", "passage_prompt": "this: "}
    names = {"query": "q: ", "passage": "p: "}
    return [
        Layout("prompts", settings(**PROMPTS), P),
        Layout("prompts named passage", settings(prompts=names), P, mend=as_said),
        Layout(
            "prompts named corpus",
            settings(prompts={"query": "q: ", "corpus": "c: "}),
            P,
            mend=as_said,
        ),
        Layout("prompts, only a query's", settings(prompts={"query": "q: ", "document": ""}), P),
        Layout(
            "prompts, a default",
            settings(prompts={"any": "all: "}, default_prompt_name="any"),
            P,
            mend=as_said,
        ),
        Layout(
            "prompts of other names",
            settings(prompts={"STS": "similar: "}),
            refused="query_prompt",
        ),
        Layout("the user's prompts", plain, P, prompt),
        Layout("the user's prompts over others", settings(**PROMPTS), P, prompt),
        Layout("similarity dot", settings(similarity_fn_name="dot"), P),
        Layout(
            "similarity dot, Normalize",
            lambda f: change(plain(f, Normalize()), CONFIG, similarity_fn_name="dot"),
            P,
        ),
        Layout(
            "similarity euclidean", settings(similarity_fn_name="euclidean"), refused="is euclidean"
        ),
        Layout(
            "similarity manhattan", settings(similarity_fn_name="manhattan"), refused="is manhattan"
        ),
        Layout("truncate_dim", settings(truncate_dim=16), P),
        Layout(
            "truncate_dim, Normalize",
            lambda f: change(plain(f, Normalize()), CONFIG, truncate_dim=8),
            P,
        ),
        Layout(
            "truncate_dim, Normalize, dot",
            lambda f: change(
                plain(f, Normalize()), CONFIG, truncate_dim=8, similarity_fn_name="dot"
            ),
            P,
        ),
        Layout(
            "truncate_dim, Dense",
            lambda f: change(plain(f, dense(32, 24)), CONFIG, truncate_dim=8),
            P,
        ),
        Layout("the user's dimensions", plain, P, {"dimensions": 12}),
        Layout(
            "too many dimensions", plain, facts={"dimensions": 33}, refused="vectors have only 32"
        ),
        Layout("an unknown key of the model", settings(novelty=3), P),
        Layout(
            "include_prompt: false", lambda f: change(plain(f, include=False), CONFIG, **PROMPTS), P
        ),
        Layout(
            "include_prompt: false, cls",
            lambda f: change(plain(f, include=False, pooling="cls"), CONFIG, **PROMPTS),
            P,
        ),
        Layout(
            "include_prompt: false, max",
            lambda f: change(plain(f, include=False, pooling="max"), CONFIG, **PROMPTS),
            P,
        ),
        Layout(
            "include_prompt: false, weightedmean",
            lambda f: change(plain(f, include=False, pooling="weightedmean"), CONFIG, **PROMPTS),
            P,
        ),
        Layout(
            "include_prompt: false, a decoder",
            lambda f: change(plain(f, include=False, family="Qwen3"), CONFIG, **PROMPTS),
            P,
        ),
        Layout(
            "include_prompt: false, the user's prompts",
            lambda f: plain(f, include=False),
            P,
            prompt,
        ),
        *(
            Layout(f"settings in {name}", partial(elsewhere, name=name), P)
            for name in (
                "sentence_roberta_config.json",
                "sentence_distilbert_config.json",
                "sentence_camembert_config.json",
                "sentence_albert_config.json",
                "sentence_xlm-roberta_config.json",
                "sentence_xlnet_config.json",
            )
        ),
        Layout("no settings of the transformer", without_settings, P),
        Layout("max_seq_length", bert(max_seq_length=20), P),
        Layout("max_seq_length beyond the positions", bert(max_seq_length=4000), P),
        Layout("lengths by role", bert(query_length=10, document_length=30), P),
        Layout("the user's length", plain, P, {"max_length": 15}),
        Layout("do_lower_case", make.cased, P),
        Layout("tokenizer_args", bert(tokenizer_args={"model_max_length": 20}), P),
        Layout("processor_kwargs", bert(processor_kwargs={"model_max_length": 20}), P),
        Layout("config_args", bert(config_args={"hidden_act": "relu"}), P),
        Layout("config_kwargs", bert(config_kwargs={"hidden_act": "relu"}), P),
        Layout(
            "model_args that change nothing", bert(model_args={"attn_implementation": "eager"}), P
        ),
        Layout(
            "model_args unknown", bert(model_args={"rotary_base": 5}), refused="rotary_base is not"
        ),
        Layout("unpad_inputs", bert(unpad_inputs=False), P),
        Layout(
            "an unknown key of the transformer",
            bert(chunk_size=8),
            refused="chunk_size is not known",
        ),
        Layout(
            "an unknown key of the pooling",
            lambda f: change(plain(f), "1_Pooling/config.json", pooling_mode_median=True),
            refused="pooling_mode_median is not known",
        ),
        Layout(
            "an unknown pooling",
            lambda f: change(plain(f), "1_Pooling/config.json", pooling_mode="median"),
            refused="median is not known",
        ),
        Layout(
            "an activation from elsewhere",
            lambda f: change(
                plain(f, dense(32, 8)), "2_Dense/config.json", activation_function="os.x"
            ),
            refused="os.x is not torch.nn's",
        ),
        Layout(
            "an adapter beside weights", make.adapter, refused="an adapter .* beside full weights"
        ),
        Layout(
            "an adapter, no base said",
            lambda f: make.adapter(f, full=False),
            refused="an adapter .* and not the model",
        ),
        Layout(
            "a path that leaves the folder",
            lambda f: rows(plain(f), lambda r: r[1].update(path="../x")),
            refused="leaves the folder",
        ),
        Layout("an encoder-decoder", encoder_decoder, refused="encoder-decoder"),
        Layout(
            "missing tensors",
            partial(without_tensor, part="encoder.layer.1."),
            refused="left random",
        ),
        Layout("quantized weights", quantized, refused="quantiz"),
        *bare(),
    ]


def elsewhere(folder: Path, name: str) -> Path:
    plain(folder)
    old = json.loads((folder / BERT).read_text())
    (folder / BERT).unlink()
    write(folder / name, old | {"max_seq_length": 20})
    return folder


def without_settings(folder: Path) -> Path:
    plain(folder)
    (folder / BERT).unlink()
    return folder


def encoder_decoder(folder: Path) -> Path:
    import transformers

    plain(folder)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 300}
    sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 130}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    transformers.BartModel(transformers.BartConfig(**sizes)).save_pretrained(folder)
    return folder


def without_tensor(folder: Path, part: str) -> Path:
    from safetensors.torch import load_file, save_file

    plain(folder)
    path = folder / "model.safetensors"
    kept = {n: t for n, t in load_file(path).items() if part not in n}
    save_file(kept, path, {"format": "pt"})
    return folder


def quantized(folder: Path) -> Path:
    plain(folder)
    given = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return change(folder, "config.json", quantization_config=given)


def bare() -> list[Layout]:
    """Folders without sentence-transformers' files: the user says what nothing else does."""
    given = {"pooling": "cls", "normalize": True, "query_prompt": "q: ", "passage_prompt": ""}

    def alone(folder: Path) -> Path:
        return make.transformer(folder)

    def pooled(mode: str) -> Callable[[Any], None]:
        def mend(peer: Any) -> None:  # sentence-transformers pools such a folder by mean
            peer[1] = Pooling(32, mode)

        return mend

    return [
        Layout("bare, nothing stated", alone, refused="nothing says what its pooling is"),
        Layout("bare, cls", alone, P, given, mend=pooled("cls")),
        Layout("bare, mean", alone, P, given | {"pooling": "mean"}, mend=pooled("mean")),
        Layout("bare, max", alone, P, given | {"pooling": "max"}, mend=pooled("max")),
        Layout(
            "bare, by FlagEmbedding's mapping",
            alone,
            P,
            {"query_prompt": ""},
            id="me/bge-m3",
            mend=pooled("cls"),
        ),
        Layout(
            "pooling stated otherwise",
            plain,
            P,
            {"pooling": "cls"},
            mend=pooled("cls"),
        ),
    ]


# Other kinds.


def other_kinds() -> list[Layout]:
    given = formats.texts(8, 1)
    sparse = partial(Layout, kind="sparse", texts=given, engine=S)
    tokens = partial(Layout, kind="multivector", texts=given, engine=S)
    return [
        sparse("SPLADE", formats.splade),
        sparse("SPLADE, sum", lambda f: formats.splade(f, pooling_strategy="sum")),
        sparse(
            "SPLADE, log1p twice", lambda f: formats.splade(f, activation_function="log1p_relu")
        ),
        sparse("SPLADE without modules.json", lambda f: formats.bert(f, True)),
        sparse("inference-free SPLADE", formats.inference_free),
        Layout("SPLADE as dense", formats.splade, refused="make a sparse model, not a dense one"),
        Layout("a dense one as sparse", plain, kind="sparse", refused="make a dense model"),
        tokens("ColBERT", formats.colbert),
        tokens(
            "ColBERT, expanded queries",
            lambda f: formats.colbert(f, query_expansion={"strategy": "fixed", "length": 24}),
        ),
        tokens("PyLate", formats.pylate),
        tokens("Stanford's ColBERT", formats.stanford),
        Layout(
            "ColBERT as dense", formats.colbert, refused="make a multivector model, not a dense"
        ),
        Layout(
            "a dense one as multivector", plain, kind="multivector", refused="make a dense model"
        ),
        Layout(
            "BGE-M3",
            formats.m3,
            facts={"query_prompt": "", "passage_prompt": ""},
            kind="m3",
            id="me/bge-m3",
            texts=given,
        ),
        Layout(
            "BGE-M3 without its heads",
            lambda f: headless(formats.m3(f)),
            facts={"query_prompt": "", "passage_prompt": ""},
            kind="m3",
            id="me/bge-m3",
            refused="has no sparse_linear.pt",
        ),
    ]


def headless(folder: Path) -> Path:
    (folder / "sparse_linear.pt").unlink()
    return folder


def adapters() -> list[Layout]:
    """Merged, and held against sentence-transformers with the adapter beside its base."""
    bert, last = lora.of("Bert"), lora.language("Qwen2")
    stated = {"pooling": "mean", "normalize": True, "query_prompt": "q: ", "passage_prompt": ""}
    causal = {"cls": "AutoModelForCausalLM", "task_type": "CAUSAL_LM"}
    features = {"task_type": "FEATURE_EXTRACTION"}
    saved = {"modules_to_save": ["LayerNorm"], "bias": "lora_only"}
    embeddings = {"target_modules": ["q_proj", "embed_tokens"]}
    scaled = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    projected = lora.adapted(lambda f: plain(f, dense(32, 16)), target_modules=["query"])
    words = {"trainable_token_indices": [70, 71]}

    def splade(folder: Path) -> Path:
        return lora.adapted(formats.splade, cls="AutoModelForMaskedLM", target_modules=["query"])(
            folder
        )

    rows = [
        Layout("adapter, BERT", bert, P),
        Layout("adapter, XLM-R, cls", lora.of("XLMRoberta", pooling="cls"), P),
        Layout("adapter, Qwen2, last token", last, P),
        Layout("adapter, Mistral, last token", lora.language("Mistral", **features), P),
        Layout("adapter, trained as a language model", lora.language("Mistral", **causal), P),
        Layout("adapter, every linear layer", lora.of("Bert", target_modules="all-linear"), P),
        Layout("adapter, embeddings", lora.language("Qwen2", **embeddings), P),
        Layout("adapter, some tokens", lora.of("Bert", **words), P),
        Layout("adapter, further modules", lora.of("Bert", **saved), P),
        Layout("adapter, rsLoRA", lora.of("Bert", use_rslora=True, lora_alpha=3), P),
        Layout("adapter, DoRA", lora.of("Bert", use_dora=True), P, mend=lora.magnitudes),
        Layout("adapter, IA3", lora.language("Qwen2", ia3=True, **scaled), P),
        Layout("adapter, Dense after it", projected, P),
        Layout("adapter, bare", lora.bare("Bert", words=True), P, stated),
        Layout("adapter, SPLADE", splade, S, kind="sparse", texts=formats.texts(8, 1)),
        Layout(
            "adapter, ColBERT",
            lora.adapted(formats.colbert, target_modules=["query"]),
            S,
            kind="multivector",
            texts=formats.texts(8, 1),
        ),
        Layout(
            "adapter, prompt tuning", lora.prompts, refused="PROMPT_TUNING, which is not merged"
        ),
        Layout("adapter, vocabulary enlarged", lora.enlarged, refused="vocabulary was enlarged"),
    ]
    heads = [
        (f"adapter, cross-encoder, {family}", lora.reranker(family), {"scores": lora.scored})
        for family in ("Bert", "Qwen2")
    ]
    return rows + [
        Layout(name, maker, kind="reranker", engine="cross-encoder", pairs=rankers.PAIRS, **given)
        for name, maker, given in heads
    ]


def rerankers() -> list[Layout]:
    return [
        Layout(name, maker, kind="reranker", **given) for name, maker, given in rankers.RERANKERS
    ]


LAYOUTS = [
    *architectures(),
    *variants(),
    *tokenizers(),
    *modules(),
    *flags(),
    Layout("padding before, cls", lambda f: left(plain(f, pooling="cls")), P),
    Layout("padding before, mean", lambda f: left(plain(f)), P),
    *other_kinds(),
    *rerankers(),
    *adapters(),
]
