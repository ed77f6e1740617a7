"""Stand-ins of what the experiments name: real ids, layouts, file names and revisions, tiny inside.

The layouts are those of the hub at the pinned commits, exports (onnx, tf, …) as empty files.
"""

import io
import json
import string
from pathlib import Path
from typing import Any

from stand_ins import Texts, random_model, sentence_transformers, write_json

LETTERS = [*string.ascii_lowercase, *string.digits]
PIECES = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *string.punctuation]
OTHERS = [*string.ascii_uppercase, *string.punctuation]
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.15,
}
EXPORTS = ("onnx/model.onnx", "openvino/openvino_model.bin", "tf_model.h5", "rust_model.ot")


def pieces(*special: str) -> dict[str, int]:
    return {word: number for number, word in enumerate([*special, *PIECES])}


def encoder(folder: Path, family: str, pooling: str, length: int, seed: int) -> Path:
    """A BERT, MPNet or XLM-RoBERTa with sentence-transformers' files and the usual exports."""
    import transformers

    folder.mkdir(parents=True)
    positions = {"max_position_embeddings": length + 2 * (family != "bert")}
    if family == "bert":
        vocabulary = pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        words = transformers.BertTokenizer(vocab=vocabulary, model_max_length=length)
        config = transformers.BertConfig(vocab_size=len(vocabulary), **SIZES, **positions)
    elif family == "mpnet":
        vocabulary = pieces("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
        words = transformers.MPNetTokenizer(vocab=vocabulary, model_max_length=length)
        config = transformers.MPNetConfig(vocab_size=len(vocabulary), **SIZES, **positions)
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *LETTERS, *OTHERS, "<mask>"]
        vocabulary = [(word, -3.0 if number > 3 else 0.0) for number, word in enumerate(special)]
        words = transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=length)
        config = transformers.XLMRobertaConfig(
            vocab_size=len(special), pad_token_id=1, bos_token_id=0, eos_token_id=2,
            **SIZES, **positions,
        )  # fmt: skip
        (folder / "sentencepiece.bpe.model").write_bytes(sentencepieces())
    random_model(folder, config, seed)
    words.save_pretrained(folder)
    if family != "xlm-roberta":
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", {"pad_token": words.pad_token})
    sentence_transformers(folder, 16, pooling=pooling, length=length)
    (folder / "config_sentence_transformers.json").write_text('{"__version__": {}}')
    (folder / "README.md").write_text("---\nlibrary_name: sentence-transformers\n---\n")
    (folder / ".gitattributes").write_text("*.bin filter=lfs\n")
    for name in EXPORTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"an export\n")
    return folder


def sentencepieces() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS)] * 3),
        model_writer=model,
        vocab_size=len(LETTERS) + 5,
        model_type="char",
        minloglevel=2,
    )
    return model.getvalue()


def pickled(folder: Path, only: bool) -> None:
    """The weights as a pickle, beside the safetensors or instead of them."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    if only:
        (folder / "model.safetensors").unlink()


def gte_qwen2(folder: Path) -> Path:
    """Code of its own beside a native class, weights in two shards, a tokenizer with auto_map."""
    import transformers
    from unit import traps

    folder.mkdir(parents=True)
    config = transformers.Qwen2Config(
        vocab_size=300, num_key_value_heads=1, max_position_embeddings=1024, **SIZES
    )
    random_model(folder, config, 11, shards=2, dtype="bfloat16")
    assert (folder / "model-00002-of-00002.safetensors").is_file()
    traps.common(folder)
    write_json(folder / "1_Pooling/config.json",
               {"word_embedding_dimension": 16, "pooling_mode_lasttoken": True})  # fmt: skip
    settings = json.loads((folder / "config.json").read_text()) | {"is_causal": False}
    repository = "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
    classes = {"AutoModel": "Qwen2Model", "AutoModelForCausalLM": "Qwen2ForCausalLM"}
    settings["auto_map"] = {k: f"{repository}--modeling_qwen.{v}" for k, v in classes.items()}
    write_json(folder / "config.json", settings)
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words["tokenizer_class"] = "Qwen2Tokenizer"
    name = "tokenization_qwen.Qwen2Tokenizer"
    words["auto_map"] = {"AutoTokenizer": [f"{repository}--{name}", f"{repository}--{name}Fast"]}
    write_json(folder / "tokenizer_config.json", words)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for module in ("modeling_qwen.py", "tokenization_qwen.py"):
        (folder / module).write_text("raise RuntimeError('custom code was run')\n")
    (folder / "scripts").mkdir()
    (folder / "scripts/eval_mteb.py").write_text("raise RuntimeError('a script was run')\n")
    write_json(folder / "sentence_bert_config.json",
               {"max_seq_length": 512, "do_lower_case": False})  # fmt: skip
    return folder


def models(folder: Path) -> dict[str, Path]:
    """Id → folder of everything that an experiment names."""
    made = {
        "sentence-transformers/all-MiniLM-L6-v2": ("bert", "mean", 256),
        "BAAI/bge-small-en-v1.5": ("bert", "cls", 512),
        "BAAI/bge-base-en-v1.5": ("bert", "cls", 512),
        "BAAI/bge-m3": ("xlm-roberta", "cls", 8192),
        "intfloat/multilingual-e5-base": ("xlm-roberta", "mean", 512),
        "intfloat/multilingual-e5-small": ("bert", "mean", 512),
        "sentence-transformers/all-mpnet-base-v2": ("mpnet", "mean", 384),
    }
    found = {
        name: encoder(folder / name, *facts, seed)
        for seed, (name, facts) in enumerate(made.items())
    }
    for name, path in found.items():
        pickled(path, only=name == "BAAI/bge-m3")
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        (found["BAAI/bge-m3"] / name).write_bytes(b"a head\n")
    name = "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
    return found | {name: gte_qwen2(folder / name)} | other_kinds(folder)


def other_kinds(folder: Path) -> dict[str, Path]:
    """A sparse model and one of late interaction, in the layouts of their makers."""
    from unit import format_models

    found = {"naver/splade-v3": format_models.splade}
    found["lightonai/GTE-ModernColBERT-v1"] = format_models.pylate
    for name, make in found.items():
        (folder / name).parent.mkdir(parents=True)
        make(folder / name)
    return {name: folder / name for name in found}


def repository(texts: Texts, prefix: str = "", **splits: dict[str, dict[str, int]]) -> dict:
    """Tables of a dataset in MTEB's layout; `splits`: the judgements of each."""
    joint = {"_id": list(texts.corpus), "title": [t for t, _ in texts.corpus.values()]}
    joint["text"] = [text for _, text in texts.corpus.values()]
    asked = {"_id": list(texts.queries), "text": list(texts.queries.values())}
    first = next(iter(splits))
    corpus, queries = (first, first) if prefix else ("corpus", "queries")
    judged = {
        split: {
            "query-id": [q for q, docs in qrels.items() for _ in docs],
            "corpus-id": [d for docs in qrels.values() for d in docs],
            "score": [float(g) for docs in qrels.values() for g in docs.values()],
        }
        for split, qrels in splits.items()
    }
    return {
        f"{prefix}corpus": {corpus: joint},
        f"{prefix}queries": {queries: asked},
        f"{prefix}qrels" if prefix else "default": judged,
    }


def dataset_files(tables: dict[str, dict[str, dict]]) -> dict[str, bytes]:
    """Parquet files and the card that names them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, configs = {}, []
    for config, splits in tables.items():
        entries = []
        for split, columns in splits.items():
            data, name = io.BytesIO(), f"{config}/{split}-00000-of-00001.parquet"
            pq.write_table(pa.table(columns), data)
            found[name] = data.getvalue()
            entries.append({"split": split, "path": name})
        configs.append({"config_name": config, "data_files": entries})
    return found | {"README.md": f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()}


PASSAGES = 70  # more than the shards that the registry recommends for any of them
BEIR = ("nfcorpus", "scifact", "arguana", "scidocs", "fiqa", "trec-covid")
LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")


def texts_of(name: str) -> Texts:
    """The texts of a dataset of the registry, `beir/scifact` say."""
    known = [*(f"beir/{n}" for n in BEIR), *(f"xquad/{n}" for n in LANGUAGES)]
    known += ["miracl/zh", "msmarco-passage"]
    grades = {"msmarco-passage": 3, "beir/nfcorpus": 2, "beir/trec-covid": 2}.get(name, 1)
    return Texts(100 + known.index(name), passages=PASSAGES, queries=5, grades=grades)


def dl20(texts: Texts) -> Texts:
    """Queries of their own on the same corpus."""
    other = Texts(300, passages=PASSAGES, queries=4, grades=3)
    other.corpus = texts.corpus
    return other


def datasets() -> dict[str, dict[str, bytes]]:
    """Repositories of the hub that the registry's entries point to."""
    found = {}
    for name in BEIR:
        texts = texts_of(f"beir/{name}")
        found[f"mteb/{name}"] = dataset_files(repository(texts, test=texts.qrels))
    tables: dict[str, dict] = {}
    for language in LANGUAGES:
        texts = texts_of(f"xquad/{language}")
        tables |= repository(texts, f"{language}-", validation=texts.qrels)
    found["mteb/XQuADRetrieval"] = dataset_files(tables)
    texts = texts_of("miracl/zh")
    found["mteb/MIRACLRetrieval"] = dataset_files(repository(texts, "zh-", dev=texts.qrels))
    texts = texts_of("msmarco-passage")
    halves = split_queries(texts)
    found["mteb/msmarco"] = dataset_files(repository(texts, dev=halves[0], test=halves[1]))
    return found


def split_queries(texts: Texts) -> tuple[dict, dict]:
    """MS MARCO's development queries and those of TREC DL 2019."""
    asked = list(texts.qrels.items())
    return dict(asked[:3]), dict(asked[3:])


def ir_datasets(folder: Path) -> Path:
    """What the hooks serve in place of ir_datasets' downloads."""
    texts = texts_of("msmarco-passage")
    docs = [[doc, text] for doc, text in texts.joined().items()]
    write_json(folder / "msmarco-passage.json", {"docs": docs})
    other = dl20(texts)
    judged = [[q, d, g] for q, held in other.qrels.items() for d, g in held.items()]
    queries = [[q, text] for q, text in other.queries.items()]
    write_json(folder / "msmarco-passage/trec-dl-2020/judged.json",
               {"docs": docs, "queries": queries, "qrels": judged})  # fmt: skip
    return folder
