"""Layouts of model folders: each gives sentence-transformers' vectors, or is refused in words.

The folders hold tiny random weights; the reference is `SentenceTransformer` on the files as they
came.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from embedrepro.encode import ENGINES
from embedrepro.errors import UserError
from embedrepro.models import comparison
from embedrepro.models.preflight import preflight
from embedrepro.models.staging import stage
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import CNN, LSTM, LayerNorm, Pooling
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from traps import write

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 130},
    **{"pad_token_id": 1, "initializer_range": 0.3},
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
ST = "sentence_transformers.models"
PROMPTS = {"prompts": {"query": "query: ", "document": "text: "}}


def tokenizer(folder: Path, ends: str = "both", pad: bool = True, **settings: object) -> None:
    """One token a byte, `<s> … </s>` around a text, only `</s>` after it, or nothing."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Tokenizer(BPE({word: i for i, word in enumerate([*special, *letters])}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(special)
    template = {"both": "<s> $A </s>", "end": "$A </s>", "none": "$A"}[ends]
    rust.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    rust.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    named |= {"pad_token": "<pad>"} if pad else {}
    named |= {"model_input_names": ["input_ids", "attention_mask"]}
    write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast"} | named | settings,
    )


def transformer(folder: Path, family: str = "Bert", head: str = "Model", **config: object) -> Path:
    torch.manual_seed(3)
    decoder = family in ("Qwen2", "Qwen3", "Llama", "Gemma3Text", "Mistral")
    sizes = (GROUPED if decoder else SIZES) | config
    model = getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer(folder, "end" if decoder or family == "T5" else "both")
    return folder


def plain(folder: Path, *more: object, pooling: object = "mean", include: bool = True, **config):
    """A folder as SentenceTransformer saves it."""
    family = config.pop("family", "Bert")
    head = config.pop("head", "Model")
    scratch = transformer(folder.parent / f"{folder.name}-transformer", family, head, **config)
    first = Transformer(str(scratch))
    pool = Pooling(first.get_embedding_dimension(), pooling, include_prompt=include)
    SentenceTransformer(modules=[first, pool, *more]).save(str(folder))
    return folder


def change(folder: Path, name: str, **values: object) -> Path:
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    write(path, old | values)
    return folder


def dense(size: int, out: int, function: object = None) -> Dense:
    torch.manual_seed(out)
    return Dense(size, out, activation_function=function or torch.nn.Tanh())


def layer_norm() -> LayerNorm:
    module = LayerNorm(32)
    with torch.no_grad():
        module.norm.weight.copy_(torch.linspace(0.5, 2, 32))
    return module


def renamed_settings(folder: Path) -> Path:
    plain(folder)
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").unlink()
    write(folder / "sentence_roberta_config.json", settings | {"max_seq_length": 20})
    return folder


def in_a_folder(folder: Path) -> Path:
    plain(folder)
    for path in [p for p in folder.iterdir() if p.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            (folder / "0_Transformer").mkdir(exist_ok=True)
            path.rename(folder / "0_Transformer" / path.name)
    rows = json.loads((folder / "modules.json").read_text())
    rows[0]["path"] = "0_Transformer"
    write(folder / "modules.json", rows)
    return folder


def without_padding_token(folder: Path) -> Path:
    plain(folder, family="Qwen2", pooling="lasttoken")
    tokenizer(folder, "end", pad=False)
    return folder


def left(folder: Path) -> Path:
    return change(folder, "tokenizer_config.json", padding_side="left")


def cased(folder: Path) -> Path:
    plain(folder)
    return change(folder, "sentence_bert_config.json", do_lower_case=True)


def t5(folder: Path) -> Path:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return plain(folder, dense(32, 16), family="T5", head="EncoderModel", **sizes)


def static_module(folder: Path, size: int = 32):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    scratch = folder.parent / f"{folder.name}-tokenizer"
    scratch.mkdir()
    tokenizer(scratch, "none")
    torch.manual_seed(1)
    rust = Tokenizer.from_file(str(scratch / "tokenizer.json"))
    return StaticEmbedding(rust, embedding_weights=torch.randn(300, size).numpy())


def static(folder: Path) -> Path:
    SentenceTransformer(modules=[static_module(folder, 24)]).save(str(folder))
    return folder


def model2vec(folder: Path) -> Path:
    """As model2vec saves it: a root folder of one table, named in modules.json."""
    static_module(folder, 24)
    folder.mkdir()
    tokenizer(folder, "none")
    torch.manual_seed(1)
    save_file({"embeddings": torch.randn(300, 24)}, folder / "model.safetensors")
    write(folder / "config.json", {"model_type": "model2vec", "hidden_dim": 24, "normalize": True})
    rows = [{"idx": 0, "name": "0", "path": ".", "type": f"{ST}.StaticEmbedding"}]
    write(
        folder / "modules.json",
        [*rows, {"idx": 1, "name": "1", "path": "1_N", "type": f"{ST}.Normalize"}],
    )
    return folder


def own_module(folder: Path) -> Path:
    plain(folder)
    rows = json.loads((folder / "modules.json").read_text())
    rows[0]["type"] = "custom_st.Transformer"
    write(folder / "modules.json", rows)
    code = "from sentence_transformers.base.modules import Transformer as Base\n\n\n"
    code += "class Transformer(Base):\n    def forward(self, features, **kwargs):\n"
    code += "        features = super().forward(features, **kwargs)\n"
    code += "        features['token_embeddings'] = features['token_embeddings'].square()\n"
    code += "        return features\n"
    (folder / "custom_st.py").write_text(code)
    return folder


def router(folder: Path) -> Path:
    from sentence_transformers.base.modules import Router

    torch.manual_seed(2)
    module = Router.for_query_document(
        query_modules=[static_module(folder)],
        document_modules=[Transformer(str(transformer(folder.parent / "t"))), Pooling(32, "mean")],
    )
    SentenceTransformer(modules=[module]).save(str(folder))
    return folder


def clip(folder: Path) -> Path:
    sizes = {k: v for k, v in SIZES.items() if k != "initializer_range"}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(
        text_config=sizes | {"eos_token_id": 2, "projection_dim": 16},
        vision_config=vision | {"projection_dim": 16},
        projection_dim=16,
    )
    torch.manual_seed(3)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer(folder)
    kind = "sentence_transformers.models.CLIPModel"
    write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    return folder


def own_forward(folder: Path) -> Path:
    """A native type with code of its own that computes something else."""
    plain(folder)
    code = "from transformers import BertModel\n\n\nclass Squared(BertModel):\n"
    code += "    def forward(self, *args, **kwargs):\n"
    code += "        output = super().forward(*args, **kwargs)\n"
    code += "        output.last_hidden_state = output.last_hidden_state.square()\n"
    code += "        return output\n"
    (folder / "modeling_own.py").write_text(code)
    return change(folder, "config.json", auto_map={"AutoModel": "modeling_own.Squared"})


def masked_lm(family: str):
    def make(folder: Path) -> Path:
        plain(folder, family=family)
        scratch = folder.parent / f"{folder.name}-lm"
        transformer(scratch, family, "ForMaskedLM")
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(scratch / name, folder / name)
        return folder

    return make


def adapter(folder: Path, full: bool = True) -> Path:
    plain(folder)
    write(folder / "adapter_config.json", {"base_model_name_or_path": "org/base", "r": 4})
    if not full:
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
    return folder


def wordpiece(folder: Path) -> Path:
    """BERT with vocab.txt alone."""
    plain(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(n) for n in range(33, 127) if not chr(n).isupper()]
    (folder / "vocab.txt").write_text("\n".join([*words, *letters, *(f"##{x}" for x in letters)]))
    (folder / "tokenizer.json").unlink()
    write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    return folder


CONFIG = "config_sentence_transformers.json"
BERT = "sentence_bert_config.json"
# name, how the folder is made, the engine, what the user states
RIGHT = [
    ("plain", plain, "packed", {}),
    ("cls", lambda f: plain(f, pooling="cls"), "packed", {}),
    ("prompts", lambda f: change(plain(f), CONFIG, **PROMPTS), "packed", {}),
    ("normalize", lambda f: plain(f, Normalize()), "packed", {}),
    ("dot", lambda f: change(plain(f), CONFIG, similarity_fn_name="dot"), "packed", {}),
    ("truncate_dim", lambda f: change(plain(f), CONFIG, truncate_dim=16), "packed", {}),
    ("Dense", lambda f: plain(f, dense(32, 16)), None, {}),
    ("Dense, LayerNorm", lambda f: plain(f, layer_norm(), dense(32, 48)), None, {}),
    (
        "two Dense, Normalize",
        lambda f: plain(f, dense(32, 48, torch.nn.Identity()), dense(48, 8), Normalize()),
        None,
        {},
    ),
    ("max", lambda f: plain(f, pooling="max"), None, {}),
    ("weightedmean", lambda f: plain(f, pooling="weightedmean"), None, {}),
    ("mean_sqrt_len", lambda f: plain(f, pooling="mean_sqrt_len_tokens"), None, {}),
    ("cls and max", lambda f: plain(f, pooling=("cls", "max")), None, {}),
    (
        "include_prompt: false",
        lambda f: change(plain(f, include=False), CONFIG, **PROMPTS),
        None,
        {},
    ),
    (
        "include_prompt: false, the user's prompt",
        lambda f: plain(f, include=False),
        None,
        {"query_prompt": "find: ", "passage_prompt": "this: "},
    ),
    ("sentence_roberta_config.json", renamed_settings, "packed", {}),
    ("max_seq_length", lambda f: change(plain(f), BERT, max_seq_length=20), "packed", {}),
    (
        "lengths by role",
        lambda f: change(plain(f), BERT, query_length=10, document_length=30),
        "packed",
        {},
    ),
    (
        "tokenizer_args",
        lambda f: change(plain(f), BERT, tokenizer_args={"model_max_length": 20}),
        "packed",
        {},
    ),
    (
        "config_args",
        lambda f: change(plain(f), BERT, config_args={"hidden_act": "relu"}),
        "packed",
        {},
    ),
    (
        "model_args that change nothing",
        lambda f: change(plain(f), BERT, model_args={"attn_implementation": "eager"}),
        "packed",
        {},
    ),
    ("do_lower_case", cased, "packed", {}),
    ("0_Transformer", in_a_folder, "packed", {}),
    ("no padding token", without_padding_token, "packed", {}),
    (
        "bidirectional Qwen3",
        lambda f: plain(f, family="Qwen3", pooling="mean", is_causal=False),
        "packed",
        {},
    ),
    (
        "Gemma 3, bidirectional, beyond its window",
        lambda f: plain(f, family="Gemma3Text", use_bidirectional_attention=True, sliding_window=8),
        "packed",
        {},
    ),
    ("last token of an encoder", lambda f: plain(f, pooling="lasttoken"), "packed", {}),
    ("ModernBERT with its head", masked_lm("ModernBert"), "packed", {}),
    ("DistilBERT with its head", masked_lm("DistilBert"), "packed", {}),
    ("data2vec without a length", lambda f: plain(f, family="Data2VecText"), "packed", {}),
    ("luke without a length", lambda f: plain(f, family="Luke"), "flagembedding", {}),
    ("vocab.txt alone", wordpiece, "packed", {}),
    ("T5 encoder, Dense", t5, "packed", {}),
    ("StaticEmbedding", static, "sentence_transformers", {}),
    (
        "CNN",
        lambda f: plain(f, CNN(32, 16, kernel_sizes=[1, 3])),
        "sentence_transformers",
        {},
    ),
    ("a module of its own", own_module, "sentence_transformers", {}),
    ("Router", router, "sentence_transformers", {}),
    ("model2vec", model2vec, "sentence_transformers", {}),
    ("own code of a native type", own_forward, "flagembedding", {"native": False}),
    ("own code that trust asks for", own_forward, "flagembedding", {}),
    ("cls, padded before", lambda f: left(plain(f, pooling="cls")), "packed", {}),
]
REFUSED = [
    ("adapter beside weights", adapter, r"an adapter \(adapter_config.json, for org/base\) beside"),
    ("adapter only", lambda f: adapter(f, full=False), "an adapter .* and not the model"),
    (
        "unknown key of a pooling",
        lambda f: change(plain(f), "1_Pooling/config.json", pooling_mode_median=True),
        "pooling_mode_median is not known here",
    ),
    (
        "unknown key of the transformer",
        lambda f: change(plain(f), BERT, chunk_size=8),
        "chunk_size is not known here",
    ),
    (
        "unknown model_args",
        lambda f: change(plain(f), BERT, model_args={"rotary_base": 5}),
        "model_args: rotary_base is not understood",
    ),
    (
        "similarity",
        lambda f: change(plain(f), CONFIG, similarity_fn_name="euclidean"),
        "similarity is euclidean",
    ),
    (
        "Dense of an activation from elsewhere",
        lambda f: change(plain(f, dense(32, 8)), "2_Dense/config.json", activation_function="os.x"),
        "activation_function: os.x is not torch.nn's",
    ),
    (
        "Dense of another input",
        lambda f: change(plain(f, dense(32, 8)), "2_Dense/config.json", module_input_name="tokens"),
        "module_input_name: tokens",
    ),
    (
        "sparse",
        lambda f: change(plain(f), CONFIG, model_type="SparseEncoder"),
        "make a sparse model, not a dense one",
    ),
]


def spec(**facts: object) -> dict:
    base = {"id": "demo/Tiny-0.1B", "model": "demo__Tiny-0_1B", "source": {"path": "/x"}}
    return base | {"trust_remote_code": True, "facts": facts, "registry": {}}


def texts(record: dict) -> list[str]:
    return [*comparison.sample(record), "ALL CAPITALS and then not"]


@pytest.mark.parametrize(
    ("make", "engine", "facts"), [row[1:] for row in RIGHT], ids=[row[0] for row in RIGHT]
)
def test_right(tmp_path, make, engine, facts):
    snapshot = make(tmp_path / "snapshot")
    staged = tmp_path / "demo__Tiny-0_1B-k"
    record = stage(spec(**facts), snapshot, staged)
    if engine:
        assert record["engine"] == engine
    if record["engine"] not in ENGINES:
        pytest.skip(f"no engine {record['engine']} yet")
    preflight(staged, tmp_path / "preflight.json")
    peer = SentenceTransformer(str(snapshot), device="cpu", trust_remote_code=True)
    ours = comparison.load_ours(staged)
    for role in ("query", "passage"):
        with suppress(AttributeError, TypeError):  # some run over their positions
            peer.max_seq_length = min(peer.max_seq_length, record["max_length"][role])
        encode = peer.encode_query if role == "query" else peer.encode_document
        settings = {"prompt": record[f"{role}_prompt"]} if facts else {}
        settings |= {"normalize_embeddings": record["normalize"], "batch_size": 1}
        expected = encode(texts(record), **settings)  # padded, some would be others
        found = comparison.own(ours, texts(record), role)
        assert found.shape == expected.shape
        np.testing.assert_allclose(comparison.unit(found), comparison.unit(expected), atol=2e-6)


LATER = [
    ("CLIP without what reads images", clip, "can't run it .*module CLIPModel.*image processor"),
    ("LSTM", lambda f: plain(f, LSTM(32, 8)), "can't run it .*module LSTM.*sentence_lengths"),
]


@pytest.mark.parametrize(
    ("make", "says"), [row[1:] for row in LATER], ids=[row[0] for row in LATER]
)
def test_refused_by_preflight(tmp_path, make, says):
    stage(spec(), make(tmp_path / "snapshot"), tmp_path / "staged")
    with pytest.raises(UserError, match=says):
        preflight(tmp_path / "staged", tmp_path / "preflight.json")
    assert not (tmp_path / "preflight.json").exists()


@pytest.mark.parametrize(
    ("make", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(tmp_path, make, says):
    snapshot = make(tmp_path / "snapshot")
    with pytest.raises(UserError, match=says):
        stage(spec(), snapshot, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()
