"""Folders with tiny random weights, in the layouts in which models are published."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
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


def tokenizer(
    folder: Path,
    ends: str = "both",
    pad: bool = True,
    added: Sequence[str] = (),
    **settings: object,
) -> None:
    """One token a byte and one each of `added`; `<s> … </s>` around a text, only `</s>` after it,
    or nothing."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Tokenizer(BPE({word: i for i, word in enumerate([*special, *letters])}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(special)
    rust.add_tokens(list(added))
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


def written(
    folder: Path,
    architecture: str,
    mode: str = "mean",
    similarity: str = "cosine",
    **config: object,
) -> Path:
    """Any architecture's folder as sentence-transformers 2 to 5 wrote it, file by file.

    `mode`: one of the older flags of 1_Pooling.
    """
    folder.mkdir()
    torch.manual_seed(5)
    made = transformers.CONFIG_MAPPING[architecture](**config)
    model = transformers.AutoModel.from_config(made)
    if architecture == "xmod":
        model.set_default_language("en_XX")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    described(folder, mode, made.hidden_size, similarity)
    tokenizer(folder, "end" if mode == "lasttoken" else "both")
    return folder


def described(folder: Path, mode: str, size: int, similarity: str = "cosine") -> Path:
    """sentence-transformers' files beside a transformer, in their older form."""
    names = ["Transformer", "Pooling"]
    rows = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"{ST}.{name}",
        }
        for i, name in enumerate(names)
    ]
    write(folder / "modules.json", rows)
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    modes = {f"pooling_mode_{flag}": flag == mode for flag in (*flags, "lasttoken")}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": size} | modes)
    write(folder / "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": False})
    settings = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": similarity}
    write(folder / "config_sentence_transformers.json", settings)
    return folder
