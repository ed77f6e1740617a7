"""Token ids of many texts, as a Rust tokenizer gives them, mostly without asking it.

A tokenizer that drops spaces and looks at what lies between them alone gives a text the ids of its
words, one after the other. Most words have been met before, so splitting texts and looking words up
is all that is left, and Arrow and NumPy do that ten times as fast. Which tokenizers are such is
read from their parts (`splits_at_spaces`); any other is asked for every text. No torch here.
"""

import json
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]

# Parts that never look across a space (U+0020), and leave each one where it is. Those that compose
# or reorder characters don't: a space is a starter that nothing composes with.
NORMALIZERS = {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD"}
SPLITTERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}  # these drop spaces
MODELS = {"WordPiece", "WordLevel"}
MOST_CHARACTERS = 2**22  # of the words that are kept: about 100 MB
TRIAL, REST = 32, 256  # calls after which is asked whether words are met again; without them


class TokenIds:
    """Asked for the ids of many texts; keeps the words that it meets.

    Where most of them are new (languages without spaces) the tokenizer is asked at once, which is
    faster then, and words are tried again after a while.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.words = Words(tokenizer) if splits_at_spaces(tokenizer) else None
        self.calls = self.characters = 0

    def __call__(self, prompt: str, limit: int, side: str, texts: list[str]) -> Arrays:
        """Of each prompt + text: ids end to end (int32), lengths (int64), cut off or not (bool).

        `limit`: tokens, special ones included; `side`: right or left, where the rest is cut off.
        """
        if prompt:
            texts = [prompt + text for text in texts]
        self.tokenizer.no_padding()
        if self.words and self._pays(texts):
            return self.words.tokenise(texts, limit, side)
        self.tokenizer.enable_truncation(limit, strategy="longest_first", direction=side)
        found = self.tokenizer.encode_batch_fast(texts)
        ids, lengths = end_to_end([encoding.ids for encoding in found])
        truncated = lengths == limit
        for i in np.flatnonzero(truncated):  # asking for the overflow builds it: only where needed
            truncated[i] = bool(found[i].overflowing)
        return ids, lengths, truncated

    def _pays(self, texts: list[str]) -> bool:
        """Whether most of the characters of the last calls were in words met before."""
        assert self.words
        if self.calls == TRIAL:
            if self.words.learned > self.characters / 3:
                self.calls = -REST
            else:
                self.calls = 0
            self.characters = self.words.learned = 0
        self.calls += 1
        if self.calls <= 0:
            return False
        self.characters += sum(map(len, texts))
        return True


def end_to_end(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All ids (int32) and the lengths of the lists (int64)."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum())), lengths


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a text's ids are those of what lies between its spaces, one after the other."""
    steps = _types(tokenizer.pre_tokenizer)
    return (
        type(tokenizer.model).__name__ in MODELS
        and _types(tokenizer.normalizer) <= NORMALIZERS
        and bool(steps & SPLITTERS)
        and steps <= SPLITTERS | {"Punctuation", "Digits"}
        and not any(" " in str(token) for token in tokenizer.get_added_tokens_decoder().values())
    )


def _types(part: Any) -> set[str]:
    """What a tokenizer's normalizer or pre-tokenizer is made of."""
    return _named(json.loads(part.__getstate__())) if part else set()


def _named(part: dict[str, Any]) -> set[str]:
    if part["type"] != "Sequence":
        return {part["type"]}
    return set().union(*map(_named, part.get("normalizers") or part.get("pretokenizers") or []))


class Words:
    """Words of texts and their ids; those of word i are `ids[starts[i] : starts[i] + lengths[i]]`.

    `learned`: characters of the words that the tokenizer was asked for.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.before, self.after = _special(tokenizer)
        self.learned = 0
        self._forget()

    def _forget(self) -> None:
        self.numbers: dict[str, int] = {}
        self.starts = self.lengths = np.empty(0, np.int64)
        self.ids: np.ndarray = np.empty(0, np.int32)
        self.held = 0

    def tokenise(self, texts: list[str], limit: int, side: str) -> Arrays:
        """As `TokenIds`, of whole texts."""
        split = pc.split_pattern(pa.array(texts, pa.string()), " ")
        found = split.values.dictionary_encode()
        word = self._known(found.dictionary.to_pylist())[found.indices.to_numpy()]
        lengths = self.lengths[word]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        ids = self.ids[_ranges(self.starts[word], lengths, ends)]
        bounds = ends[split.offsets.to_numpy()]
        return self._cut(ids, np.diff(bounds), limit, side)

    def _known(self, words: list[str]) -> np.ndarray:
        """The numbers of `words`, each of them once; new ones are tokenised."""
        if self.held > MOST_CHARACTERS:
            self._forget()
        numbers = list(map(self.numbers.get, words))
        if None in numbers:
            self._learn([w for w, number in zip(words, numbers, strict=True) if number is None])
            numbers = list(map(self.numbers.get, words))
        return np.array(numbers, np.int64)

    def _learn(self, words: list[str]) -> None:
        self.tokenizer.no_truncation()
        found = self.tokenizer.encode_batch_fast(words, add_special_tokens=False)
        ids, lengths = end_to_end([encoding.ids for encoding in found])
        starts = len(self.ids) + np.cumsum(lengths) - lengths
        self.ids = np.concatenate([self.ids, ids])
        self.starts = np.concatenate([self.starts, starts])
        self.lengths = np.concatenate([self.lengths, lengths])
        self.numbers |= zip(words, range(len(self.numbers), len(self.starts)), strict=True)
        characters = sum(map(len, words))
        self.held += characters
        self.learned += characters

    def _cut(self, ids: np.ndarray, lengths: np.ndarray, limit: int, side: str) -> Arrays:
        """Texts of `lengths` tokens cut to `limit`, with the special tokens about them."""
        special = len(self.before) + len(self.after)
        kept = np.minimum(lengths, max(0, limit - special))
        truncated = kept < lengths
        if truncated.any():
            first = np.cumsum(lengths) - lengths
            if side == "left":
                first = first + lengths - kept
            ids = ids[_ranges(first, kept)]
        total = kept + special
        ends = np.cumsum(total)
        begin = ends - total
        laid = np.empty(int(total.sum()), np.int32)
        inner = np.ones(len(laid), bool)
        for i, token in enumerate(self.before):
            laid[begin + i], inner[begin + i] = token, False
        for i, token in enumerate(reversed(self.after), 1):
            laid[ends - i], inner[ends - i] = token, False
        laid[inner] = ids
        return laid, total, truncated


def _ranges(starts: np.ndarray, lengths: np.ndarray, ends: np.ndarray | None = None) -> np.ndarray:
    """starts[0], starts[0] + 1, … (lengths[0] of them), starts[1], …; `ends`: 0 and their sums."""
    if ends is None:
        ends = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(starts - ends[:-1], lengths)
    places += np.arange(len(places))
    return places


def _special(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    found = tokenizer.encode("a")
    inner = [i for i, special in enumerate(found.special_tokens_mask) if not special]
    return found.ids[: inner[0]], found.ids[inner[-1] + 1 :]
