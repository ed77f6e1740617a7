"""Tiny random models that give sparse or token vectors, in the layouts of real repositories."""

import json
from pathlib import Path

import torch
import transformers
from embedrepro.encode.facts import Facts
from embedrepro.search import job, kinds
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MARKERS = ["[unused0]", "[unused1]"]
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *MARKERS, ".", ",", *WORDS])}
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
LENGTHS = {"query": 24, "passage": 40}


def texts(count: int, seed: int = 0, most: int = 60) -> list[str]:
    """Texts of 1 to `most` words, a third of them with punctuation."""
    draw = torch.Generator().manual_seed(seed)
    pick = [*WORDS, *WORDS, ".", ","]
    found = []
    for _ in range(count):
        length = int(torch.randint(1, most, (), generator=draw))
        words = torch.randint(len(pick), (length,), generator=draw).tolist()
        found.append(" ".join(pick[i] for i in words))
    return found


def write_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerFast:
    rust = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=80,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def without_special_tokens(folder: Path) -> Path:
    """The same model; its tokenizer adds no tokens, so an empty text has none."""
    for path in folder.rglob("tokenizer.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    return folder


def bert(folder: Path, head: bool = False) -> Path:
    """A BERT in transformers' layout, with or without a masked language model's head."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES)
    model = (transformers.BertForMaskedLM if head else transformers.BertModel)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def splade(folder: Path, **pooling: object) -> Path:
    """SPLADE as sentence-transformers saves it."""
    trunk = Transformer(str(bert(folder.with_name("mlm"), True)), transformer_task="fill-mask")
    SparseEncoder(modules=[trunk, SpladePooling(**pooling)], device="cpu").save(str(folder))
    return folder


def inference_free(folder: Path) -> Path:
    """SPLADE for passages, a weight for each term of a query."""
    trunk = Transformer(str(bert(folder.with_name("mlm"), True)), transformer_task="fill-mask")
    weight = torch.rand(len(VOCABULARY), generator=torch.Generator().manual_seed(3))
    static = SparseStaticEmbedding(trunk.tokenizer, weight)
    router = Router.for_query_document(
        query_modules=[static], document_modules=[trunk, SpladePooling("max")]
    )
    SparseEncoder(modules=[router], device="cpu").save(str(folder))
    return folder


def _projection() -> Dense:
    torch.manual_seed(1)
    return Dense(
        in_features=SIZES["hidden_size"],
        out_features=16,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
    )


def colbert(folder: Path, similarity: str = "maxsim", **trunk: object) -> Path:
    """Late interaction as sentence-transformers saves it."""
    modules = [
        Transformer(str(bert(folder.with_name("trunk"))), **trunk),
        _projection(),
        MultiVectorMask(skiplist_words=[".", ","]),
        Normalize(module_input_name="token_embeddings"),
    ]
    MultiVectorEncoder(
        modules=modules,
        device="cpu",
        similarity_fn_name=similarity,
        prompts={"query": "w1 ", "document": "w2 "},
    ).save(str(folder))
    return folder


def pylate(folder: Path) -> Path:
    """PyLate's layout: transformer and projection only, the rest in one file."""
    modules = [Transformer(str(bert(folder.with_name("trunk")))), _projection()]
    MultiVectorEncoder(modules=modules, device="cpu").save(str(folder))
    listed = json.loads((folder / "modules.json").read_text())[:2]
    listed[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(listed))
    config = {
        "model_type": "ColBERT",
        "query_prefix": "[unused0]",
        "document_prefix": "[unused1]",
        "query_length": 24,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": [".", ","],
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    return folder


def stanford(folder: Path) -> Path:
    """Stanford's layout: the projection among the encoder's weights, artifact.metadata."""
    bert(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    tensors["linear.weight"] = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(config))
    metadata = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 24,
        "doc_maxlen": 40,
        "mask_punctuation": True,
        "attend_to_mask_tokens": False,
    }
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return folder


def m3(folder: Path) -> Path:
    """BGE-M3's layout: XLM-RoBERTa and two heads of their own."""
    torch.manual_seed(0)
    sizes = SIZES | {"bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 100}
    model = transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer = write_tokenizer(folder)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    for name, rows in (("sparse_linear", 1), ("colbert_linear", 32)):
        torch.save(torch.nn.Linear(32, rows).state_dict(), folder / f"{name}.pt")
    return folder


def facts(folder: Path, **given: object) -> Facts:
    """What staging would say of such a folder."""
    stated = {
        "staged": folder,
        "model_id": f"test/{folder.name}",
        "revision": None,
        "kind": "dense",
        "architecture": "bert",
        "native": True,
        "trust_remote_code": False,
        "attention": "bidirectional",
        "end_token": None,
        "pooling": "cls",
        "include_prompt": True,
        "normalize": True,
        "query_prompt": "",
        "passage_prompt": "",
        "max_length": LENGTHS,
        "dtype": "float32",
        "engine": "sentence_transformers",
        "dimensions": None,
        "full_dimension": 32,
        "hidden_size": 32,
    }
    return Facts(**stated | given)


def run_bytes(folder: Path, pieces: list[Path], k: int) -> bytes:
    """The run of q.npy over the pieces of a corpus, as a search job makes it.

    In one go and by hits that are merged, which must agree in every byte.
    """
    ids, queries = folder / "corpus.parquet", folder / "queries.parquet"
    one, other = folder / "run.trec", folder / "merged.trec"
    hits = [folder / f"h{i}.parquet" for i in range(len(pieces))]
    for path in (one, other, *hits):
        path.unlink(missing_ok=True)
    kinds.search_rows([job.Row(folder / "q.npy", pieces, ids, queries, k, "m", one)], "cpu")
    searches = [
        job.Piece(folder / "q.npy", piece, ids, k, output)
        for piece, output in zip(pieces, hits, strict=True)
    ]
    kinds.search_pieces(searches, "cpu")
    job.merge_rows([job.MergeRow(hits[::-1], ids, queries, k, "m", other)])
    assert one.read_bytes() == other.read_bytes()
    return one.read_bytes()
