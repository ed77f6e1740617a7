"""Sparse and token vectors of passages laid end to end, on a GPU, beside sentence-transformers."""

import numpy as np
import pytest
import torch
from embedrepro.encode.multivector import MultiVectorEngine
from embedrepro.encode.sparse import SparseEngine
from format_models import colbert, facts, splade, texts
from sentence_transformers import MultiVectorEncoder, SparseEncoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KINDS = {
    "sparse": (splade, SparseEngine, SparseEncoder),
    "multivector": (colbert, MultiVectorEngine, MultiVectorEncoder),
}
CUT = {"text": {"max_length": 40}}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    make, engine, peer = KINDS[request.param]
    folder = make(tmp_path / request.param)
    stated = facts(folder, query_prompt=None, passage_prompt=None, dtype="float16")
    return engine(stated, "cuda", tokens_per_batch=512), peer(str(folder), device="cuda")


def each(engine, given):
    """What each text becomes: one array of its numbers (terms before weights)."""
    found = {}
    for part in engine.encode(given, "passage"):
        arrays = [part.vectors] if hasattr(part, "vectors") else [part.columns, part.values]
        ends = np.cumsum(part.lengths)
        for row, end, length in zip(part.rows.tolist(), ends, part.lengths, strict=True):
            found[row] = [array[end - length : end] for array in arrays]
    return [found[row] for row in range(len(given))]


def test_numbers_are_sentence_transformers_own(kind):
    engine, peer = kind
    assert engine.flat
    given = texts(80, 2)
    found = each(engine, given)
    if isinstance(peer, MultiVectorEncoder):
        expected = peer.encode_document(given, processing_kwargs=CUT)
        for (ours,), theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.astype(np.float32), theirs.cpu(), atol=1e-2)
        return
    peer[0].tokenizer.model_max_length = 40
    expected = peer.encode_document(given, convert_to_sparse_tensor=False).cpu().numpy()
    for (columns, values), theirs in zip(found, expected, strict=True):
        ours = np.zeros(len(theirs), np.float32)
        ours[columns] = values
        np.testing.assert_allclose(ours, theirs, atol=2e-2)


def test_neighbours_and_cuts_change_no_byte(kind):
    engine, _ = kind
    given = texts(300, 3)
    whole = [[array.tobytes() for array in arrays] for arrays in each(engine, given)]
    order = np.random.default_rng(0).permutation(len(given)).tolist()
    shuffled = each(engine, [given[i] for i in order])
    assert [[a.tobytes() for a in arrays] for arrays in shuffled] == [whole[i] for i in order]
    for start in range(0, len(given), 100):
        part = each(engine, given[start : start + 100])
        assert [[a.tobytes() for a in p] for p in part] == whole[start : start + 100]
