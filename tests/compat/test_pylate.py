"""Late interaction as PyLate has it: its checkpoints, its token vectors, its scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedrepro.models import comparison
from embedrepro.models.preflight import preflight
from embedrepro.models.staging import stage
from embedrepro.search import maxsim
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))
from format_models import bert, texts  # noqa: E402

pytestmark = pytest.mark.compat
EMBED = Path(__file__).with_name("embed_pylate.py")
LENGTHS = {"query_length": 24, "document_length": 40}
SETTINGS = {
    "as it is": {},
    "expansion is attended": {"attend_to_expansion_tokens": True},
    "no expansion": {"do_query_expansion": False},
    "markers and words to skip": {
        "query_prefix": "[unused0]",
        "document_prefix": "[unused1]",
        "skiplist_words": [".", "w3"],
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_token_vectors_and_scores_are_pylates(pylate_python, tmp_path, name):
    queries, documents = texts(12, 1, most=12), texts(60, 2)
    given, settings = tmp_path / "texts.json", tmp_path / "settings.json"
    given.write_text(json.dumps([queries, documents]))
    settings.write_text(json.dumps(LENGTHS | SETTINGS[name]))
    saved, output = tmp_path / "Tiny-1.5", tmp_path / "found.npz"
    command = [pylate_python, EMBED, bert(tmp_path / "bert"), given, saved, output, settings]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    theirs = np.load(output)

    spec = {"id": "me/Tiny-1.5", "model": "m", "source": {"path": "x"}, "kind": "multivector"}
    spec |= {"trust_remote_code": False, "facts": {}, "registry": {}}
    record = stage(spec, saved, tmp_path / "staged")
    assert record["max_length"] == {"query": 24, "passage": 40}
    preflight(tmp_path / "staged", tmp_path / "proof.json")
    engine = comparison.load_ours(tmp_path / "staged")
    ours = {}
    for role, some in (("query", queries), ("passage", documents)):
        ours[role] = comparison.own_many(engine, some, role)
        for number, vectors in enumerate(ours[role]):
            np.testing.assert_allclose(vectors, theirs[f"{role[0]}{number}"], atol=1e-5)

    found = scored(ours["query"], ours["passage"])
    difference = np.abs(found - theirs["pairs"]) / np.maximum(1, np.abs(found))
    print(f"{name}: {difference.max():.1e}")
    assert difference.max() <= 1e-5
    # `rank.rerank` pads the shorter documents with zeros, which count there as further tokens.
    longest = max(map(len, ours["passage"]))
    padded = [np.r_[d, np.zeros((int(len(d) < longest), 16))] for d in ours["passage"]]
    np.testing.assert_allclose(
        scored(ours["query"], padded), theirs["ranked"], rtol=1e-5, atol=1e-5
    )


def scored(queries, documents):
    """(queries, documents) MaxSim as search defines it."""
    pairs = [[(q.astype(float), d.astype(float)) for d in documents] for q in queries]
    return np.array([[maxsim.defined_score(*pair, "maxsim") for pair in row] for row in pairs])
