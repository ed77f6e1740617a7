"""Run by PyLate's Python: embed_pylate.py BERT TEXTS.json FOLDER OUTPUT.npz SETTINGS.json

Saves a ColBERT of random projection over BERT as PyLate does, loads it again, and writes the token
vectors of queries (q0, q1, …) and documents (p0, …), and their scores (queries, documents): `pairs`
of each document by itself, `ranked` as `rank.rerank` gives them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pylate import models, rank, scores


def main():
    bert, texts, folder, output, settings = sys.argv[1:]
    torch.manual_seed(0)
    given = json.loads(Path(settings).read_text())
    models.ColBERT(bert, device="cpu", embedding_size=16, **given).save_pretrained(folder)
    model = models.ColBERT(folder, device="cpu")
    queries, documents = json.loads(Path(texts).read_text())
    q = model.encode(queries, is_query=True, batch_size=4)
    d = model.encode(documents, is_query=False, batch_size=4)
    pairs = np.array([[float(scores.colbert_scores(a[None], b[None])[0, 0]) for b in d] for a in q])
    found = rank.rerank([list(range(len(d)))] * len(q), q, [d] * len(q), device="cpu")
    ranked = np.zeros_like(pairs)
    for row, hits in enumerate(found):
        for hit in hits:
            ranked[row, hit["id"]] = hit["score"]
    named = {f"{kind}{i}": x for kind, some in (("q", q), ("p", d)) for i, x in enumerate(some)}
    np.savez(output, pairs=pairs, ranked=ranked, **named)


if __name__ == "__main__":
    main()
