"""Text to token ids, as FlagEmbedding and sentence-transformers make them, in bounded chunks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..errors import UserError, printable
from .batches import ahead
from .facts import Facts

CHUNK = 4096  # texts handed to the tokenizer at once
CHUNK_CHARACTERS = 4_000_000  # … unless they are very long


@dataclass
class Tokens:
    """A run of tokenised texts, laid end to end.

    `first`: row of the first text. `ids`: (sum of lengths,) int32. `lengths`: (n,) int64.
    `truncated`: (n,) bool, whether text was cut off.
    """

    first: int
    ids: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    def sequences(self) -> list[np.ndarray]:
        """The ids of each text, views on `ids`."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1])


class Tokeniser:
    """A staged folder's tokenizer with one role's prompt and length limit.

    Equal to `tokenizer(prompt + text, truncation=True, max_length=…)["input_ids"]`. The Rust
    tokenizer is called without that method's Python work per text; whether both agree is checked on
    the first texts, and if not (a tokenizer that adds tokens in Python) the method itself is used.
    Raises `UserError` when the prompt alone fills the limit.
    """

    def __init__(self, tokenizer: Any, facts: Facts, role: str, instruction: str | None) -> None:
        if role not in ("query", "passage"):
            raise UserError(f"role {printable(role)}: use query or passage")
        self.tokenizer = tokenizer
        self.facts = facts
        self.prompt = facts.prompt(role, instruction)
        self.limit = facts.max_length[role]
        self.end = None
        if facts.pooling == "last_token" and facts.end_token is not None:
            self.end = tokenizer.convert_tokens_to_ids(facts.end_token)
        taken = len(tokenizer(self.prompt)["input_ids"])
        if taken >= self.limit:
            raise UserError(
                f"{facts.model_id}: the {role} prompt takes {taken} of max_length.{role} = "
                f"{self.limit} tokens; raise the limit or shorten the prompt"
            )
        self.fast = getattr(tokenizer, "is_fast", False)
        if self.fast:
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.enable_truncation(
                self.limit, strategy="longest_first", direction=tokenizer.truncation_side
            )

    def chunks(self, texts: Iterable[str]) -> Iterator[Tokens]:
        """Tokenise `texts` as they are asked for. Raises `UserError` for a text without tokens.

        Reading and the Rust tokenizer each run in a thread, one chunk ahead of what is made here.
        """
        first = 0
        for count, found in ahead(self._found(ahead(_bounded(texts), 1)), 1):
            lists, truncated = self._read_out(found) if self.fast else found
            lengths = np.array([len(ids) for ids in lists], np.int64)
            ids = np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum()))
            self._check(first, ids, lengths)
            yield Tokens(first, ids, lengths, np.array(truncated, bool))
            first += count

    def _found(self, chunks: Iterable[list[str]]) -> Iterator[tuple[int, Any]]:
        """What the tokenizer makes of each chunk, still in its own form if it is the Rust one."""
        start = True
        for chunk in chunks:
            chunk = [self.prompt + text for text in chunk]
            if start and self.fast:
                probe = chunk[:16] + [max(chunk, key=len)]
                self.fast = self._read_out(self._rust(probe))[0] == self._python(probe)[0]
            start = False
            yield len(chunk), self._rust(chunk) if self.fast else self._python(chunk)

    def _rust(self, texts: list[str]) -> list[Any]:
        return self.tokenizer.backend_tokenizer.encode_batch_fast(texts)

    def _read_out(self, found: list[Any]) -> tuple[list[list[int]], list[bool]]:
        lists = [encoding.ids for encoding in found]
        # Asking for the overflow builds it: only where there can be one.
        cut = [
            len(ids) == self.limit and bool(encoding.overflowing)
            for ids, encoding in zip(lists, found, strict=True)
        ]
        return lists, cut

    def _python(self, texts: list[str]) -> tuple[list[list[int]], list[bool]]:
        lists = self.tokenizer(texts, truncation=True, max_length=self.limit)["input_ids"]
        cut = [
            len(ids) == self.limit and len(self.tokenizer(text)["input_ids"]) > self.limit
            for ids, text in zip(lists, texts, strict=True)
        ]
        # That method leaves its own settings behind.
        if self.fast:
            self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.backend_tokenizer.enable_truncation(
                self.limit, strategy="longest_first", direction=self.tokenizer.truncation_side
            )
        return lists, cut

    def _check(self, first: int, ids: np.ndarray, lengths: np.ndarray) -> None:
        name = printable(self.facts.model_id)
        if (lengths == 0).any():
            row = first + int(np.flatnonzero(lengths == 0)[0])
            raise UserError(f"{name}: text {row} has no tokens; remove empty texts")
        if self.end is None:
            return
        missing = ids[np.cumsum(lengths) - 1] != self.end
        if missing.any():
            row = first + int(np.flatnonzero(missing)[0])
            raise UserError(
                f"{name}: text {row} doesn't end with the end token {self.facts.end_token!r}; "
                "the staged tokenizer is not the one that was checked: stage the model again"
            )


def _bounded(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most CHUNK texts and about CHUNK_CHARACTERS characters.

    The first are small, so that the device has work soon.
    """
    chunk: list[str] = []
    characters, size = 0, CHUNK // 8
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == size or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters, size = [], 0, min(2 * size, CHUNK)
    if chunk:
        yield chunk
