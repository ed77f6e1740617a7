"""However many texts come together, a text's vector has the same bytes; on a GPU if there is one.

The number of rows decides how a GPU adds up a row, so batches that are part filled must not show.
"""

import numpy as np
import pytest
import torch
import transformers
from embedrepro.encode.packed import PackedEngine
from embedrepro.encode.sentence_transformers import SentenceTransformersEngine
from format_models import LENGTHS, SIZES, facts, texts, write_tokenizer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = pytest.param("float16", marks=pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device"))
COUNTS = (1, 2, 3, 5, 9, 17, 33)


@pytest.fixture
def given():
    return texts(160, 3)


def bert(folder):
    torch.manual_seed(0)
    wide = {"hidden_size": 384, "intermediate_size": 768}  # a row of 32 is added up in one way
    transformers.BertModel(transformers.BertConfig(**SIZES | wide)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def vectors(engine, given):
    found = np.zeros((len(given), engine.dimension), engine.precision.stored)
    for part in engine.encode(given, "passage"):
        found[part.rows] = part.vectors
    return found


def check(engine, given):
    whole = vectors(engine, given)
    order = np.random.default_rng(0).permutation(len(given))
    assert vectors(engine, [given[i] for i in order]).tobytes() == whole[order].tobytes()
    start = 0
    for count in COUNTS:
        part = slice(start, start + count)
        assert vectors(engine, given[part]).tobytes() == whole[part].tobytes()
        start += count


@pytest.mark.parametrize("dtype", ["float32", HALF])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("behind", [(), ("Dense",)])
def test_packed(tmp_path, given, dtype, pooling, behind):
    rows = [{"type": "Pooling", "path": ""}]
    for name in behind:
        path = tmp_path / "bert" / name
        path.mkdir(parents=True)
        Dense(384, 384).save(str(path))
        rows.append({"type": name, "path": name, "in_features": 384, "out_features": 384})
    stated = {"pooling": pooling, "dtype": dtype, "engine": "packed", "modules": rows}
    stated |= {"hidden_size": 384, "full_dimension": 384, "max_length": LENGTHS}
    engine = PackedEngine(facts(bert(tmp_path / "bert"), **stated), DEVICE, 2048)
    assert engine.varlen == (DEVICE == "cuda")
    check(engine, given)


def test_static(tmp_path, given):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=384)])
    model.save(str(tmp_path / "static"))
    stated = {"pooling": "mean", "hidden_size": 384, "full_dimension": 384}
    engine = SentenceTransformersEngine(facts(tmp_path / "static", **stated), DEVICE)
    check(engine, given)
