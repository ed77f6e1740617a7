"""Stored embeddings as search takes them, or refuses them. Needs no torch."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .dense import load_array


def open_embeddings(path: Path | str, verify: bool = True) -> tuple[np.ndarray, dict[str, Any]]:
    """Memory-map float16 or float32 vectors (n, dim) and read their sidecar (see `load_array`)."""
    array, meta = load_array(path, verify)
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
        raise UserError(f"{path}: {array.dtype}{list(array.shape)} is no matrix of embeddings")
    return array, meta


def check_pair(
    queries: Path | str,
    vectors: np.ndarray,
    query_meta: dict[str, Any],
    corpus: Path | str,
    documents: np.ndarray,
    meta: dict[str, Any],
) -> None:
    """Refuse query and corpus embeddings that were not made to be compared.

    Their precision may differ: queries are encoded in float32, whatever the corpus is.
    """
    if vectors.shape[1] != documents.shape[1]:
        raise UserError(
            f"{queries} has shape {list(vectors.shape)}, {corpus} has "
            f"{documents.shape[1]} dimensions; encode both with the same model and settings"
        )
    if query_meta.get("model_id") != meta.get("model_id"):
        raise UserError(
            f"{queries} has model_id {query_meta.get('model_id')}, {corpus} has "
            f"{meta.get('model_id')}; encode both with the same model"
        )


def check_finite(vectors: np.ndarray, path: Path | str) -> None:
    """Refuse vectors (n, dim) whose squared length is no finite float32."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float32)
    if not np.isfinite(squares).all():
        raise not_finite(path, int(np.argmin(np.isfinite(squares))))


def not_finite(path: Path | str, row: int) -> UserError:
    return UserError(
        f"{path}: row {row} holds NaN, infinity or values too large for float32; "
        "check the model's dtype and encode again"
    )
