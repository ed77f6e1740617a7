"""Text to token ids, as FlagEmbedding and sentence-transformers make them, in bounded chunks."""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Tokenizer

from ..errors import UserError, printable
from ..files import free_cores
from ..models.facts_table import Role
from . import tokenizer_pool
from .ahead import ahead
from .batches import Sequences
from .facts import Facts
from .token_ids import Arrays, TokenIds, end_to_end

CHUNK = 4096  # texts handed to a tokenizer at once
FIRST = 128  # … at first
CHUNK_CHARACTERS = 4_000_000  # … unless they are very long
LOOK = 8  # chunks after which is asked whether tokenising is what the others wait for
MOST_PROCESSES = 16


class Shared:
    """What all requests of one tokenizer share: words that it knows, processes once they pay."""

    _of: "WeakKeyDictionary[Any, Shared]" = WeakKeyDictionary()

    def __init__(self, rust: Tokenizer) -> None:
        self.ids = TokenIds(rust)
        self.pool: tokenizer_pool.Pool | None = None
        self.close: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, tokenizer: Any) -> "Shared":
        """Those of a transformers tokenizer; its processes end with it."""
        if tokenizer not in cls._of:
            cls._of[tokenizer] = cls(tokenizer.backend_tokenizer)
        return cls._of[tokenizer]

    def start(self, count: int) -> None:
        self.pool = tokenizer_pool.Pool(self.ids.tokenizer, count)
        self.close = weakref.finalize(self, self.pool.close)

    def stop(self) -> None:
        """End the processes; the next request starts new ones where they pay."""
        self.close()
        self.pool = None


class Tokeniser:
    """A staged folder's tokenizer with one role's prompt and length limit.

    Equal to `tokenizer(prompt + text, truncation=True, max_length=…)["input_ids"]`. The Rust
    tokenizer is called without that method's Python work per text; whether both agree is checked on
    the first texts, and if not (a tokenizer that adds tokens in Python) the method itself is used.
    Raises `UserError` when the prompt alone fills the limit. `reads_empty`: texts without any token
    are told, with length 0, instead of refused.
    """

    def __init__(
        self,
        tokenizer: Any,
        facts: Facts,
        role: Role,
        instruction: str | None,
        prompt: str | None = None,
        *,
        reads_empty: bool = False,
    ) -> None:
        if role not in ("query", "passage"):
            raise UserError(f"role {printable(role)}: use query or passage")
        self.tokenizer = tokenizer
        self.facts = facts
        self.reads_empty = reads_empty
        self.prompt = facts.prompt(role, instruction) if prompt is None else prompt
        self.limit = facts.max_length[role]
        self.end = None
        if facts.pooling == "last_token" and facts.end_token is not None:
            self.end = tokenizer.convert_tokens_to_ids(facts.end_token)
        alone = tokenizer(self.prompt)["input_ids"]
        taken = len(alone)
        # As sentence-transformers counts: without a special token that closes it.
        closed = bool(alone) and alone[-1] in getattr(tokenizer, "all_special_ids", ())
        self.prompt_length = taken - closed if self.prompt else 0
        if taken >= self.limit:
            raise UserError(
                f"{facts.model_id}: the {role} prompt takes {taken} of max_length.{role} = "
                f"{self.limit} tokens; raise the limit or shorten the prompt"
            )
        self.fast = getattr(tokenizer, "is_fast", False)
        if self.fast:
            self.shared = Shared.of(tokenizer)

    def chunks(self, texts: Iterable[str]) -> Iterator[Sequences]:
        """Tokenise `texts` as they are asked for. Raises `UserError` for a text without tokens,
        unless such are read.

        Reading and tokenising each run in a thread, one chunk ahead of what is asked for.
        """
        first = 0
        for ids, lengths, truncated in ahead(self._found(ahead(_bounded(texts), 1)), 1):
            self._check(first, ids, lengths)
            yield Sequences(np.arange(first, first + len(lengths)), ids, lengths, truncated)
            first += len(lengths)

    def _found(self, chunks: Iterator[list[str]]) -> Iterator[Arrays]:
        """The arrays of each chunk.

        Made here at first: a small shard is done before other processes are up, and beside a large
        model they would have nothing to do. Where this thread is busy for most of a look, and cores
        are free, processes take over as soon as they are ready.
        """
        busy, since = 0.0, time.perf_counter()
        for number, chunk in enumerate(chunks):
            if number == 0 and self.fast:
                self.fast = self._agrees([*chunk[:16], max(chunk, key=len)])
            if self.fast and self.shared.pool and self.shared.pool.ready():
                yield from self._in_processes(self.shared.pool, chain([chunk], chunks))
                return
            began = time.perf_counter()
            found = (self._rust if self.fast else self._python)(chunk)
            busy += time.perf_counter() - began
            yield found
            if number % LOOK == LOOK - 1:
                now = time.perf_counter()
                # The first look sees the queues fill, not how fast they are emptied.
                if number > LOOK and busy > (now - since) / 2:
                    self._start_processes()
                busy, since = 0.0, now

    def _start_processes(self) -> None:
        count = min(free_cores() - 2, MOST_PROCESSES)
        if count > 1 and self.fast and not self.shared.pool:
            self.shared.start(count)

    def _in_processes(
        self, pool: tokenizer_pool.Pool, chunks: Iterable[list[str]]
    ) -> Iterator[Arrays]:
        side = self.tokenizer.truncation_side
        try:
            yield from pool.tokenise(self.prompt, self.limit, side, chunks)
        except RuntimeError:  # one of them has died
            self.shared.stop()
            raise

    def _agrees(self, texts: list[str]) -> bool:
        """Whether the Rust tokenizer alone gives the ids that the tokenizer's own method gives."""
        return np.array_equal(self._rust(texts)[0], self._python(texts)[0])

    def _rust(self, texts: list[str]) -> Arrays:
        side = self.tokenizer.truncation_side
        return self.shared.ids(self.prompt, self.limit, side, texts)

    def _python(self, texts: list[str]) -> Arrays:
        texts = [self.prompt + text for text in texts]
        lists = self.tokenizer(texts, truncation=True, max_length=self.limit)["input_ids"]
        ids, lengths = end_to_end(lists)
        truncated = lengths == self.limit
        for i in np.flatnonzero(truncated):
            truncated[i] = len(self.tokenizer(texts[i])["input_ids"]) > self.limit
        return ids, lengths, truncated

    def _check(self, first: int, ids: np.ndarray, lengths: np.ndarray) -> None:
        name = printable(self.facts.model_id)
        if not self.reads_empty and (lengths == 0).any():
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
    characters, size = 0, FIRST
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == size or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters, size = [], 0, min(2 * size, CHUNK)
    if chunk:
        yield chunk
