"""The general engine against `SentenceTransformer` itself, for each kind of folder it loads."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from embedrepro import files
from embedrepro.encode import load_engine
from embedrepro.errors import UserError
from encode_models import WORDS, stage, tiny, tokenizer
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    BoW,
    LayerNorm,
    Pooling,
    StaticEmbedding,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

LIMIT = 64
FREE = ("static", "router")  # their queries have no limit
OWN = """
import torch
class Own(torch.nn.Module):
    config_keys = []
    def __init__(self, factor=3.0):
        super().__init__()
    def forward(self, features, **kwargs):
        found = features["sentence_embedding"]
        features["sentence_embedding"] = torch.cat([found.sin(), found[:, :8]], 1)
        return features
    def save(self, *args, **kwargs):
        pass
    @classmethod
    def load(cls, *args, **kwargs):
        return cls()
"""


def texts(count=41, seed=0, longest=90):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, longest))) for _ in range(count)]


def bert(tmp_path):
    torch.manual_seed(1)
    return Transformer(str(tiny(tmp_path / "bert", "bert")), max_seq_length=LIMIT)


def pooled(tmp_path, *modes, size=64, prompt=True):
    return [bert(tmp_path), Pooling(size, pooling_mode=tuple(modes), include_prompt=prompt)]


def randomise(modules):
    torch.manual_seed(2)
    with torch.no_grad():
        for module in modules:
            if isinstance(module, (Dense, LayerNorm)):
                for parameter in module.parameters():
                    parameter.copy_(0.2 * torch.randn_like(parameter))
    return modules


def several(tmp_path):
    dense = Dense(192, 48, activation_function=torch.nn.Tanh())
    return randomise([*pooled(tmp_path, "mean", "cls", "max"), dense, LayerNorm(48), Normalize()])


def t5(tmp_path):
    config = transformers.T5Config(
        vocab_size=64, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, pad_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    tokenizer(end=True).save_pretrained(tmp_path / "t5")
    dense = Dense(64, 32, bias=False, activation_function=torch.nn.Identity())
    t5 = Transformer(str(tmp_path / "t5"), max_seq_length=LIMIT)
    return randomise([t5, Pooling(64), dense, Normalize()])


def clip(tmp_path):
    config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=64, max_position_embeddings=LIMIT, eos_token_id=2, bos_token_id=0,
        pad_token_id=1, projection_dim=24,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "clip")
    tokenizer(end=False).save_pretrained(tmp_path / "clip")
    return [Transformer(str(tmp_path / "clip"), max_seq_length=LIMIT), Pooling(32, "lasttoken")]


def static(tmp_path):
    torch.manual_seed(0)
    return [StaticEmbedding(tokenizer(end=False), embedding_dim=32), Normalize()]


def router(tmp_path):
    queries = [StaticEmbedding(tokenizer(end=False), embedding_dim=64)]
    return [Router.for_query_document(queries, pooled(tmp_path, "mean")), Normalize()]


def words(tmp_path):
    weights = np.random.default_rng(0).normal(size=(len(WORDS) + 1, 24)).astype(np.float32)
    weights[0] = 0
    split = WhitespaceTokenizer(["PADDING_TOKEN", *WORDS], stop_words=[])
    return [WordEmbeddings(split, weights, max_seq_length=LIMIT), Pooling(24), Normalize()]


def bag(tmp_path):
    return [BoW(WORDS, {word: i + 1.0 for i, word in enumerate(WORDS)})]


def adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = tiny(tmp_path / "base", "bert")
    torch.manual_seed(3)
    model = transformers.AutoModel.from_pretrained(base)
    lora = get_peft_model(model, LoraConfig(r=4, target_modules=["query", "value"]))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))
    lora.save_pretrained(tmp_path / "adapter")
    tokenizer(end=False).save_pretrained(tmp_path / "adapter")
    return [Transformer(str(tmp_path / "adapter"), max_seq_length=LIMIT), Pooling(64)]


def decoder(tmp_path):
    folder = tiny(tmp_path / "llama", "llama", causal=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"padding_side": "left", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return [Transformer(str(folder), max_seq_length=LIMIT), Pooling(64, "lasttoken"), Normalize()]


KINDS = {
    "max": lambda path: [*pooled(path, "max"), Normalize()],
    "mean_sqrt_len": lambda path: pooled(path, "mean_sqrt_len_tokens"),
    "weightedmean without prompt": lambda path: pooled(path, "weightedmean", prompt=False),
    "mean without prompt": lambda path: [*pooled(path, "mean", prompt=False), Normalize()],
    "several, dense, layer norm": several,
    "t5": t5,
    "text tower": clip,
    "static": static,
    "router": router,
    "words": words,
    "bag of words": bag,
    "adapter": adapter,
    "decoder without pad token": decoder,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            scratch = tmp_path_factory.mktemp("made")
            model = SentenceTransformer(modules=KINDS[kind](scratch), device="cpu")
            model.save(str(scratch / "model"), create_model_card=False)
            made[kind] = stage(
                scratch / "model",
                engine="sentence_transformers",
                architecture="any",
                pooling="modules",
                normalize=False,
                full_dimension=model.get_embedding_dimension(),
                max_length={"query": 200 if kind in FREE else LIMIT, "passage": LIMIT},
                query_prompt="w3 w4 w5 ",
                passage_prompt="w6 ",
            )
        return made[kind]

    return get


def encode(engine, some, role):
    found = np.full((len(some), engine.dimension), np.nan, engine.precision.stored)
    totals = [0, 0]
    for part in engine.encode(some, role):
        found[part.rows] = part.vectors
        totals[0] += part.tokens
        totals[1] += part.truncated
    return found, totals


def peer(folder):
    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    if getattr(model.tokenizer, "pad_token", "") is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_equals_sentence_transformers(folders, kind):
    folder = folders(kind)
    engine, model, some = load_engine(folder, {}, "cpu"), peer(folder), texts()
    expected = model.encode_query(some, prompt="w3 w4 w5 ", show_progress_bar=False)
    found, (tokens, truncated) = encode(engine, some, "query")
    scale = max(1, np.abs(expected).max())
    if "layer norm" in kind:  # which divides by what rounding moved
        scale *= 2
    if "decoder" in kind:  # rotary positions count the padding, which is another one
        scale *= 10
    assert np.abs(found - expected).max() <= 1e-6 * scale
    short = [text for text in some if len(text.split()) < 60]
    expected = model.encode_document(short, prompt="w6 ", show_progress_bar=False)
    assert np.abs(encode(engine, short, "passage")[0] - expected).max() <= 1e-6 * scale
    if kind not in FREE and kind != "bag of words":
        added = {"words": 0, "t5": 1, "decoder without pad token": 1}.get(kind, 2)
        lengths = np.array([len(text.split()) + 3 + added for text in some])
        assert truncated == (lengths > LIMIT).sum() > 0
        assert tokens == np.minimum(lengths, LIMIT).sum()


def test_own_code_runs_with_consent(folders, tmp_path):
    folder = shutil.copytree(folders("max"), tmp_path / "own")
    (folder / "own.py").write_text(OWN)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "", "type": "own.Own"})
    (folder / "modules.json").write_text(json.dumps(modules))
    record = json.loads((folder / "stage.json").read_text())
    record["files"]["modules.json"]["sha256"] = files.sha256(folder / "modules.json")
    record |= {"trust_remote_code": True, "code": {"own.py": files.sha256(folder / "own.py")}}
    record |= {"full_dimension": 72}
    (folder / "stage.json").write_text(json.dumps(record))
    engine = load_engine(folder, {"dimensions": 70}, "cpu")
    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    expected = model.encode_document(texts(), prompt="w6 ", truncate_dim=70)
    found = np.full((41, 70), np.nan, np.float32)
    for part in engine.encode(texts(), "passage"):
        found[part.rows] = part.vectors
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    (folder / "stage.json").write_text(json.dumps(record | {"trust_remote_code": False}))
    with pytest.raises(UserError, match="sentence-transformers can't load it"):
        load_engine(folder, {}, "cpu")


def test_precision_and_mistakes(folders):
    folder = folders("several, dense, layer norm")
    exact, _ = encode(load_engine(folder, {}, "cpu"), texts(), "query")
    half, _ = encode(load_engine(folder, {"dtype": "float16"}, "cpu"), texts(), "query")
    assert half.dtype == np.float16 and 0 < np.abs(half - exact).max() < 1e-2
    with pytest.raises(UserError, match="fp8"):
        load_engine(folder, {"dtype": "fp8"}, "cpu")
    engine = load_engine(folder, {}, "cpu")
    with pytest.raises(UserError, match="prompt takes 72 of"):
        engine.encode(["w1"], "query", prompt="w1 " * 70)
    with pytest.raises(UserError, match="dimensions 49"):
        engine.encode(["w1"], "query", dimensions=49)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_change_no_byte(folders, kind):
    engine = load_engine(folders(kind), {}, "cpu", tokens_per_batch=512)
    some = texts(120) + ["w1 " * 100] * 2
    whole, _ = encode(engine, some, "passage")
    for size in (1, 7, 50):
        parts = [encode(engine, some[i : i + size], "passage")[0] for i in range(0, 122, size)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
    order = np.random.default_rng(0).permutation(122)
    shuffled, _ = encode(engine, [some[i] for i in order], "passage")
    assert shuffled[np.argsort(order)].tobytes() == whole.tobytes()
