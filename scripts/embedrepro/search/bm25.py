"""BM25 with the bm25s library, as a model among the others.

Settings and their defaults are those of MTEB's `mteb/baseline-bm25s` (k1 1.5, b 0.75, Lucene's
variant, English stop words, Snowball stemmer), so that its published rows can be compared. One
thing is added: text in scripts that are written without spaces, which bm25s would take for one
long word, is cut into overlapping pairs of characters, as Lucene's CJKAnalyzer does (Anserini's
BM25 for Chinese, Japanese and Korean). Text in other scripts is tokenised as bm25s does it.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer

from ..datasets.reading import read_texts
from ..errors import UserError
from ..schema import over_defaults
from .runs import Ranking, kept, read_ids, trec_order

DEFAULTS = {
    "method": "lucene",  # robertson, lucene, atire, bm25l, bm25+
    "k1": 1.5,
    "b": 0.75,
    "delta": 0.5,  # bm25l and bm25+ only
    "tokenizer": "pairs",  # pairs, words (bm25s's own), characters (MTEB's for Chinese)
    "stopwords": "en",  # a list bm25s has, or null
    "stemmer": "english",  # a Snowball language, or null
}
CHOICES = {
    "method": ("robertson", "lucene", "atire", "bm25l", "bm25+"),
    "tokenizer": ("pairs", "words", "characters"),
    "stopwords": ("en", "de", "nl", "fr", "es", "pt", "it", "ru", "sv", "no", "zh", None),
    "stemmer": (*Stemmer.algorithms(), None),
}
# Han, kana, Hangul, Thai, Lao, Tibetan, Myanmar, Khmer
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
RUN = re.compile(f"[{UNSPACED}]+")
WORD = r"(?u)\b\w\w+\b"  # bm25s's and scikit-learn's default


class Tokenizer:
    """Texts to lists of tokens. `settings`: tokenizer, stopwords and stemmer of DEFAULTS."""

    def __init__(self, settings: dict[str, Any]):
        self.kind = settings["tokenizer"]
        self.stopwords = settings["stopwords"] or []
        language = settings["stemmer"]
        self.stemmer = Stemmer.Stemmer(language) if language else None

    def __call__(self, texts: list[str]) -> list[list[str]]:
        pattern = WORD
        if self.kind == "pairs":
            texts = [RUN.sub(_pairs, text) for text in texts]
            pattern = rf"{WORD}|[{UNSPACED}]"
        elif self.kind == "characters":
            texts = [unicodedata.normalize("NFKC", text) for text in texts]
            pattern = r"\S"
        return bm25s.tokenize(
            texts,
            token_pattern=pattern,
            stopwords=self.stopwords,
            stemmer=self.stemmer,
            return_ids=False,
            show_progress=False,
        )


def _pairs(match: re.Match) -> str:
    run = match.group()
    return f" {' '.join(a + b for a, b in zip(run, run[1:], strict=False)) or run} "


def read_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` over DEFAULTS; raises `UserError` naming an unknown key or value."""
    settings = over_defaults(spec, DEFAULTS, CHOICES, "bm25")
    for key, value in spec.items():
        if key not in CHOICES and not (isinstance(value, int | float) and value >= 0):
            raise UserError(f"bm25: {key} is {value!r}; give a number, 0 or more")
    return settings


def search_bm25(
    corpus: Path, queries: Path, title: str, spec: dict[str, Any], k: int
) -> Iterator[Ranking]:
    """Yield each query's best `k` passages that score above 0, in trec_eval's order.

    `corpus`, `queries`: prepared Parquet; `title`: join puts titles before the text, drop leaves
    them out. Queries with no hit are left out. Scores are bm25s's float32 sums.
    """
    settings = read_spec(spec)
    tokenize = Tokenizer(settings)
    ids = read_ids(corpus)
    index = bm25s.BM25(**{key: settings[key] for key in ("method", "k1", "b", "delta")})
    texts = list(read_texts(corpus, title))
    index.index(tokenize(texts), show_progress=False)
    del texts
    asked = tokenize(list(read_texts(queries)))
    for query, tokens in zip(read_ids(queries).to_pylist(), asked, strict=True):
        known = index.get_tokens_ids(tokens)
        if not known:
            continue
        scores = index.get_scores_from_ids(known)
        rows = best_rows(scores, k + 1, ids)
        docs = ids.take(rows).to_pylist()
        depth = kept(query, docs, k)
        if docs:
            yield query, docs[:depth], scores[rows[:depth]]


def best_rows(scores: np.ndarray, k: int, ids: Any) -> np.ndarray:
    """Rows of the best `k` of `scores` (n,) float32 above 0, ties by id; `ids` (n,) pyarrow."""
    floor = np.partition(scores, -k)[-k] if k < len(scores) else 0
    rows = np.flatnonzero((scores >= floor) & (scores > 0))
    return rows[trec_order(np.zeros(len(rows), np.int8), scores[rows], rows, ids.take)[:k]]
