"""Tiny models and datasets, real in form: random weights, made-up words."""

import json
import random
from pathlib import Path

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # ids as in RoBERTa
VOCABULARY = 260  # these and a token for each byte


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def tokenizer(
    folder: Path, template: str | None = "<s> $A </s>", length: int = 200, pair: bool = False
) -> None:
    """A token for each byte, with the special tokens of `template` around them."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = {word: i for i, word in enumerate([*SPECIAL, *letters])}
    rust = Tokenizer(models.BPE(numbers, [], unk_token="<unk>"))
    rust.add_special_tokens(SPECIAL)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    if template:
        ends = [("<s>", 0), ("</s>", 2)]
        second = {"pair": "<s> $A </s> $B:1 </s>:1"} if pair else {}
        rust.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=ends, **second
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=["input_ids", *["token_type_ids"] * pair, "attention_mask"],
    ).save_pretrained(folder)


def sentence_transformers(
    folder: Path,
    width: int,
    pooling: str | None = "mean",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    length: int | None = 160,
    include_prompt: bool = True,
) -> None:
    """The files by which sentence-transformers knows a model; no pooling: none of them."""
    if pooling is None:
        return
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else ""}
        | {"type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    flags = {"mean": "mean_tokens", "cls": "cls_token", "last_token": "lasttoken"}
    modes = {f"pooling_mode_{flag}": name == pooling for name, flag in flags.items()}
    modes |= {} if include_prompt else {"include_prompt": False}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | modes)
    if length:
        limits = {"max_seq_length": length, "do_lower_case": False}
        write_json(folder / "sentence_bert_config.json", limits)
    settings = {"prompts": prompts or {"query": "", "document": ""}}
    settings["similarity_fn_name"] = "cosine" if normalize else "dot"
    write_json(folder / "config_sentence_transformers.json", settings)


def random_model(folder: Path, config: object, seed: int, shards: int = 1, dtype: str = "") -> None:
    """Weights of `config`'s class, wide enough that every part shows in the vectors."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if dtype:
        model = model.to(getattr(torch, dtype))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    limit = {"max_shard_size": size // shards + 1} if shards > 1 else {}
    model.save_pretrained(folder, **limit)


def bert(
    folder: Path,
    seed: int = 0,
    layers: int = 1,
    width: int = 16,
    dtype: str = "",
    pickle: bool = False,
    **files: object,
) -> Path:
    """A BERT folder as sentence-transformers ships it; `files` go to its own settings."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=200,
        pad_token_id=1,
        type_vocab_size=2,
        initializer_range=0.15,
    )
    random_model(folder, config, seed, dtype=dtype)
    if pickle:
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    tokenizer(folder)
    sentence_transformers(folder, width, **files)
    return folder


def qwen(folder: Path, seed: int = 0, width: int = 16, layers: int = 2, **files: object) -> Path:
    """A decoder whose files state nothing that can be stated in a config."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=200,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=0,
        initializer_range=0.15,
    )
    random_model(folder, config, seed)
    tokenizer(folder, template=None)
    sentence_transformers(folder, width, **{"pooling": None} | files)
    return folder


class Texts:
    """A corpus, its queries and its judgements, made from a seed."""

    def __init__(
        self, seed: int = 0, passages: int = 24, queries: int = 6, grades: int = 1, length: int = 8
    ) -> None:
        rng = random.Random(seed)

        def words(most: int) -> str:
            return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, most)))

        self.corpus = {f"d{i}": ("" if i % 3 else words(3), words(length)) for i in range(passages)}
        self.queries = {f"q{i}": words(5) for i in range(queries)}
        self.qrels = {
            query: {
                doc: rng.randint(1, grades)
                for doc in rng.sample(sorted(self.corpus), min(4, passages))
            }
            for query in self.queries
        }

    def joined(self, title: str = "join") -> dict[str, str]:
        """Each passage as it is encoded."""
        return {
            doc: f"{head} {text}".strip() if title == "join" else text
            for doc, (head, text) in self.corpus.items()
        }

    def beir(self, folder: Path, *splits: str) -> Path:
        corpus = [{"_id": i, "title": t, "text": x} for i, (t, x) in self.corpus.items()]
        write_lines(folder / "corpus.jsonl", corpus)
        write_lines(folder / "queries.jsonl", [{"_id": i, "text": x} for i, x in self._asked()])
        for split in splits or ("test",):
            path = folder / "qrels" / f"{split}.tsv"
            path.parent.mkdir(exist_ok=True)
            rows = "".join(f"{q}\t{d}\t{g}\n" for q, d, g in self._judged())
            path.write_text(f"query-id\tcorpus-id\tscore\n{rows}", encoding="utf-8")
        return folder

    def flagembedding(self, folder: Path, *splits: str) -> Path:
        corpus = [{"id": i, "title": t, "text": x} for i, (t, x) in self.corpus.items()]
        write_lines(folder / "corpus.jsonl", corpus)
        for split in splits or ("test",):
            asked = [{"id": i, "text": x} for i, x in self._asked()]
            write_lines(folder / f"{split}_queries.jsonl", asked)
            judged = [{"qid": q, "docid": d, "relevance": g} for q, d, g in self._judged()]
            write_lines(folder / f"{split}_qrels.jsonl", judged)
        return folder

    def _asked(self) -> list[tuple[str, str]]:
        return list(self.queries.items())

    def _judged(self) -> list[tuple[str, str, int]]:
        return [(q, d, g) for q, docs in self.qrels.items() for d, g in docs.items()]


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


OWN_CODE = """
from transformers import BertModel


class OwnModel(BertModel):
    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.last_hidden_state = found.last_hidden_state + 0.5
        return found
"""


def bert_with_code(folder: Path, seed: int = 0) -> Path:
    """A BERT with code of its own where transformers has the class: every state is 0.5 more."""
    bert(folder, seed)
    (folder / "modeling_own.py").write_text(OWN_CODE, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.OwnModel"}
    write_json(folder / "config.json", config | {"architectures": ["OwnModel"]})
    return folder


def cross_encoder(folder: Path, seed: int = 0, **config: object) -> Path:
    """A BERT that gives a pair of texts one number, as cross-encoders on the hub are laid out."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    settings = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=600,
        pad_token_id=1,
        num_labels=1,
        initializer_range=0.15,
    )
    model = transformers.BertForSequenceClassification(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if config:
        path = folder / "config.json"
        write_json(path, json.loads(path.read_text()) | config)
    tokenizer(folder, pair=True, length=512)
    return folder


def adapter(folder: Path, base: Path, seed: int = 0, targets: tuple[str, ...] = ()) -> Path:
    """A LoRA of the model in `base` as peft saves it, with sentence-transformers' files around."""
    import peft
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModel.from_pretrained(base)
    both = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=list(targets)))
    with torch.no_grad():
        for parameter in both.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    both.save_pretrained(folder)
    for path in base.rglob("*"):
        name = path.relative_to(base)
        if path.is_file() and name.name != "model.safetensors" and str(name) != "config.json":
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(path.read_bytes())
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """A folder as the hub server takes a repository."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decoder_reranker(folder: Path, seed: int = 0) -> Path:
    """A decoder that answers yes or no, as FlagEmbedding's and Qwen's rerankers are laid out."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY + 2,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1000,
        pad_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer(folder, template=None, length=900)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["yes", "no"])
    words.save_pretrained(folder)
    return folder
