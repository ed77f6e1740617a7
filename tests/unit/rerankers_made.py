"""Rerankers of each recipe with tiny random weights, and their makers' own scores.

RERANKERS: (name, how it is made, Layout's).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import layout_folders as make
import torch
import transformers

SIZES = make.SIZES | {"initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 2}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2000}
Pairs = Sequence[tuple[str, str]]
PAIRS = [("do cats purr", "Cats purr and sleep. " * n) for n in (1, 3, 5, 20)]
PAIRS += [("which birds fly", "dogs bark " * n + "HOME") for n in (1, 2, 12)]
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def cross(folder: Path, family: str, labels: int = 1, head: bool = True, **config: Any) -> Path:
    """A classification head on a trunk."""
    torch.manual_seed(7)
    name = f"{family}ForSequenceClassification" if head else f"{family}Model"
    sizes = GROUPED if family in ("Qwen2", "Qwen3", "Llama") else SIZES
    made = getattr(transformers, f"{family}Config")(**sizes | {"num_labels": labels} | config)
    getattr(transformers, name)(made).save_pretrained(folder)
    make.tokenizer(folder)
    return folder


def language_model(folder: Path, family: str = "Qwen3", **config: Any) -> Path:
    torch.manual_seed(8)
    made = getattr(transformers, f"{family}Config")(**GROUPED | config)
    getattr(transformers, f"{family}ForCausalLM")(made).save_pretrained(folder)
    make.tokenizer(folder, "none", bos_token="<s>", added=["yes", "no", "Yes"])
    return folder


def minicpm(folder: Path) -> Path:
    """bge-reranker-v2-minicpm-layerwise: a head for each layer from the second on, own code."""
    from embedrepro.models.minicpm import LayerWiseMiniCPMForCausalLM, MendedMiniCPM

    torch.manual_seed(9)
    sizes = {k: v for k, v in GROUPED.items() if k != "head_dim"} | {"num_hidden_layers": 4}
    sizes |= {"start_layer": 2, "head_multi": True, "head_type": "simple", "scale_emb": 12}
    sizes |= {
        "initializer_range": 0.2,
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "tie_word_embeddings": False,
    }
    MendedMiniCPM(LayerWiseMiniCPMForCausalLM.config_class(**sizes)).save_pretrained(folder)
    make.tokenizer(folder, "none", bos_token="<s>", added=["Yes"])
    name = "modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM"
    names = {"architectures": ["LayerWiseMiniCPMForCausalLM"]}
    return make.change(folder, "config.json", auto_map={"AutoModelForCausalLM": name}, **names)


def folded(snapshot: Path, pairs: Pairs, settings: dict[str, Any]) -> list[float]:
    """MiniCPM's scores by transformers' own Llama, its scales multiplied into the weights."""
    import json

    from safetensors.torch import load_file

    given = json.loads((snapshot / "config.json").read_text())
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps")
    config = transformers.LlamaConfig(**{name: given[name] for name in names}, rope_theta=10_000.0)
    tensors = load_file(snapshot / "model.safetensors")
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    weights["embed_tokens.weight"] = weights["embed_tokens.weight"] * given["scale_emb"]
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale = given["scale_depth"] / given["num_hidden_layers"] ** 0.5
            weights[name] = weights[name] * scale
    model = transformers.LlamaModel(config).eval()
    model.load_state_dict(weights)
    (layer,) = settings["options"].get("cutoff_layers", [given["num_hidden_layers"]])
    head = tensors[f"lm_head.{layer - given['start_layer']}.linear_head.weight"][0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(snapshot)

    def ids(text: str, most: int | None = None) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"][:most]

    length, found = settings["max_length"], []
    prompt = "Given a query A and a passage B, determine whether the passage contains an answer to "
    prompt += "the query by providing a prediction of either 'Yes' or 'No'."
    for query, passage in pairs:
        first = [tokenizer.bos_token_id, *ids(f"A: {query}", length * 3 // 4)]
        second = [*ids("\n"), *ids(f"B: {passage}", length)]
        second = second[: length + len(ids("\n")) + len(ids(prompt)) - len(first)]
        row = torch.tensor([[*first, *second, *ids("\n"), *ids(prompt)]])
        with torch.no_grad():
            states = model(row, output_hidden_states=True).hidden_states[layer]
            last = layer == given["num_hidden_layers"]  # of which Llama took the norm already
            found.append(float((states if last else model.norm(states))[0, -1] @ head))
    return found


def asked_in_modules(folder: Path) -> Path:
    """A language model as sentence-transformers' CrossEncoder saves it, with LogitScore."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    scratch = language_model(folder.parent / "lm")
    trunk = Transformer(str(scratch), transformer_task="text-generation")
    yes, no = (trunk.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    CrossEncoder(modules=[trunk, LogitScore(yes, no)], device="cpu").save(str(folder))
    return folder


def by_cross_encoder(snapshot: Path, pairs: Pairs, settings: dict[str, Any]) -> Any:
    from sentence_transformers import CrossEncoder

    peer = CrossEncoder(str(snapshot), max_length=settings["max_length"], device="cpu")
    return peer.predict(list(pairs), activation_fn=torch.nn.Identity(), batch_size=1)


def by_flag(cls: str) -> Callable[[Path, Pairs, dict[str, Any]], Any]:
    def scores(snapshot: Path, pairs: Pairs, settings: dict[str, Any]) -> Any:
        import FlagEmbedding

        options = dict(settings["options"])
        if settings["prompt"]:
            options["prompt"] = settings["prompt"]
        length = settings["max_length"]
        peer = getattr(FlagEmbedding, cls)(
            str(snapshot), devices=["cpu"], max_length=length, batch_size=1, **options
        )
        return peer.compute_score(list(pairs))

    return scores


def by_card(snapshot: Path, pairs: Pairs, settings: dict[str, Any]) -> list[float]:
    """The code on Qwen3-Reranker's card, its format and its two words; log odds of yes."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(snapshot, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(snapshot).eval()
    false, true = tokenizer.convert_tokens_to_ids("no"), tokenizer.convert_tokens_to_ids("yes")
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    before = tokenizer.encode(prefix, add_special_tokens=False)
    after = tokenizer.encode(suffix, add_special_tokens=False)
    task, found = settings["instruction"] or TASK, []
    for query, passage in pairs:
        text = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {passage}"
        room = settings["max_length"] - len(before) - len(after)
        inputs = tokenizer(
            [text],
            padding=False,
            truncation="longest_first",
            return_attention_mask=False,
            max_length=room,
        )
        ids = torch.tensor([before + inputs["input_ids"][0] + after])
        with torch.no_grad():
            last = model(input_ids=ids).logits[:, -1, :]
        pair = torch.log_softmax(torch.stack([last[:, false], last[:, true]], 1), 1).exp()
        found.append(float(torch.log(pair[0, 1] / pair[0, 0])))
    return found


def own(name: str, maker: Any, **given: Any) -> tuple[str, Any, dict[str, Any]]:
    scores = {"scores": by_cross_encoder, "engine": "cross-encoder", "pairs": PAIRS}
    return name, maker, scores | given


LLM = {"pairs": PAIRS, "engine": "decoder-only-base", "scores": by_flag("FlagLLMReranker")}
CARD = {
    "pairs": PAIRS,
    "engine": "qwen3-reranker",
    "scores": by_card,
    "options": {"max_length": 700},
}
LAYERS = {"pairs": PAIRS, "engine": "decoder-only-layerwise", "scores": folded}
RERANKERS: list[tuple[str, Any, dict[str, Any]]] = [
    own("cross-encoder, BERT", partial(cross, family="Bert")),
    own("cross-encoder, RoBERTa", partial(cross, family="Roberta")),
    own("cross-encoder, XLM-R", partial(cross, family="XLMRoberta")),
    own("cross-encoder, ModernBERT", partial(cross, family="ModernBert")),
    own("cross-encoder, Electra", partial(cross, family="Electra")),
    own("cross-encoder, DistilBERT", partial(cross, family="DistilBert")),
    own("cross-encoder, DeBERTa v2", partial(cross, family="DebertaV2")),
    own("cross-encoder, MPNet", partial(cross, family="MPNet")),
    own("cross-encoder, gte", partial(cross, family="Gte")),
    own("cross-encoder, Qwen2", partial(cross, family="Qwen2")),
    own("cross-encoder, Qwen3", partial(cross, family="Qwen3")),
    own("cross-encoder, Llama", partial(cross, family="Llama")),
    own(
        "cross-encoder by FlagEmbedding",
        partial(cross, family="XLMRoberta"),
        facts={"recipe": "encoder-only-base"},
        engine="encoder-only-base",
        scores=by_flag("FlagReranker"),
    ),
    own("cross-encoder, LogitScore", asked_in_modules),
    (
        "cross-encoder, no head",
        partial(cross, family="Bert", head=False),
        {"refused": "holds no classification head"},
    ),
    (
        "cross-encoder, two labels",
        partial(cross, family="Bert", labels=2),
        {"refused": "has 2 labels"},
    ),
    (
        "bge-reranker-v2-gemma",
        partial(language_model, family="Gemma"),
        LLM | {"id": "BAAI/bge-reranker-v2-gemma"},
    ),
    (
        "a language model as stated",
        language_model,
        LLM | {"facts": {"recipe": "decoder-only-base"}},
    ),
    ("a language model, nothing stated", language_model, {"refused": "rerank: {engine: "}),
    (
        "a language model, another prompt",
        language_model,
        LLM
        | {
            "facts": {"recipe": "decoder-only-base"},
            "options": {"prompt": "Is B about A?"},
        },
    ),
    (
        "bge-reranker-v2-minicpm-layerwise",
        minicpm,
        LAYERS | {"id": "BAAI/bge-reranker-v2-minicpm-layerwise"},
    ),
    (
        "bge-reranker-v2-minicpm-layerwise, an earlier layer",
        minicpm,
        LAYERS
        | {"facts": {"recipe": "decoder-only-layerwise"}}
        | {"options": {"options": {"cutoff_layers": [3]}}},
    ),
    (
        "layerwise, not MiniCPM",
        language_model,
        {"facts": {"recipe": "decoder-only-layerwise"}, "refused": "recipe of MiniCPM's rerankers"},
    ),
    (
        "bge-reranker-v2.5-gemma2-lightweight",
        partial(language_model, family="Gemma2"),
        {"id": "BAAI/bge-reranker-v2.5-gemma2-lightweight", "refused": "needs transformers 4.46"},
    ),
    ("Qwen3-Reranker", language_model, CARD | {"id": "Qwen/Qwen3-Reranker-0.6B"}),
    (
        "Qwen3-Reranker by another name",
        language_model,
        CARD | {"facts": {"recipe": "qwen3-reranker"}},
    ),
    (
        "Qwen3-Reranker, another task",
        language_model,
        CARD
        | {
            "id": "Qwen/Qwen3-Reranker-4B",
            "options": {"max_length": 700, "instruction": "Find cats"},
        },
    ),
]
