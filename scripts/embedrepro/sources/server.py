"""An embedding server, asked over HTTP: OpenAI's /v1/embeddings, TEI's /embed and /rerank.

What answers can change at any time, so nothing that comes from a server is pinned: it goes by what
the server says of itself, and is asked for it again before it encodes.
"""

import ipaddress
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import numpy as np

from ..errors import UserError, printable
from ..files import digest, read_json, write_record
from ..schema import nearest
from .address import APIS, KEY, Api

Said = dict[str, Any]
RECORD = "server.json"  # in a snapshot and in a staged folder: what was found out about the server
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try
TRIES = len(WAITS) + 1
LONGEST_WAIT = 60.0
TIMEOUT = httpx2.Timeout(300, connect=10)
CONCURRENT = 8  # requests under way
BATCH = 32  # texts a request; TEI's own limit unless it says another
REFUSED = (400, 413, 422, 424)  # statuses by which a server refuses what is in a request
# What vLLM and its kin take beside OpenAI's own fields: cut at the model's own length.
CUT: Mapping[Api, Mapping[str, Any]] = {
    "tei": {"truncate": True},
    "openai": {"truncate_prompt_tokens": -1},
}
LONG = 20_000  # words of a text longer than most models take


class Refused(Exception):
    """The server refuses what a request holds; its text is what the server says."""


class Silent(Exception):
    """The server can't be reached, or not within the tries; its text says why."""


class Answer(NamedTuple):
    """What came back for some texts: `vectors` (n, dimension) float32, tokens if it says them."""

    vectors: np.ndarray
    tokens: int


class Server:
    """One server and the model that is asked of it. A context: it holds connections."""

    def __init__(self, url: str, model: str, api: Api | None = None) -> None:
        self.url, self.model, self.api = url.rstrip("/"), model, api
        self.batch = BATCH
        self.where = f"server {printable(self.url)}"
        self.stopped = threading.Event()
        self.key = os.environ.get(KEY, "")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # Redirects are not followed: they could carry the key elsewhere.
        self.client = httpx2.Client(
            timeout=TIMEOUT, headers=headers, trust_env=not _is_local(self.url)
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.client.close()

    def place(self, path: str) -> str:
        """The address of a request; OpenAI's stand below /v1 unless the URL names a folder."""
        if self.api == "openai" and not urlsplit(self.url).path:
            return f"{self.url}/v1{path}"
        return f"{self.url}{path}"

    # One request

    def send(self, method: str, path: str, body: Any = None, tries: int = TRIES) -> Any:
        """The JSON that the server answers, asked again while it is overloaded or cut off.

        Raises `Refused`, `Silent`, or `UserError` for an address or key that is wrong.
        """
        why, asked_wait = "", 0.0
        for wait in [0.0, *WAITS][:tries]:
            if wait:
                pause = min(max(wait, asked_wait), LONGEST_WAIT)
                print(f"{self.where}: {why}; again in {pause:g} s", file=sys.stderr)
                if self.stopped.wait(pause):
                    break
            try:
                response = self.client.request(method, self.place(path), json=body)
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                why, asked_wait = type(error).__name__, 0.0
                continue
            except (httpx2.InvalidURL, UnicodeError) as error:
                raise UserError(f"{self.where}: not an address ({printable(error)})") from None
            status = response.status_code
            if status in (408, 429) or status >= 500:
                why, asked_wait = f"HTTP status {status}", _seconds(response)
                continue
            if status == 200:
                try:
                    return response.json()
                except ValueError:
                    why, asked_wait = "an answer that is not JSON", 0.0
                    continue
            self.raise_for(response, path)
        raise Silent(why or "no answer")

    def raise_for(self, response: httpx2.Response, path: str) -> None:
        status = response.status_code
        said = self.hidden(_message(response))
        if status in REFUSED:
            raise Refused(f"HTTP status {status}: {said}" if said else f"HTTP status {status}")
        if status in (401, 403):
            hint = f"the key in {KEY} gives no access" if self.key else f"set {KEY} to its key"
            raise UserError(f"{self.where}: refuses access (HTTP status {status}); {hint}")
        raise UserError(
            f"{self.where}: HTTP status {status} for {path}; check the address, and api: under "
            f"source ({' or '.join(APIS)})"
        )

    def hidden(self, text: str) -> str:
        """What a server says, without the key: some repeat it."""
        return printable(text.replace(self.key, "…") if self.key else text, 200)

    # What it says of itself

    def introduce(self, tries: int = TRIES) -> Said:
        """What identifies its model: api, model, and what else it says (revision, dtype, …).

        Finds the api out where it isn't stated. Raises `Silent` where nothing answers.
        """
        if self.api is not None:
            return self._tei(tries) if self.api == "tei" else self._openai(tries)
        found: Said = {}
        asked: tuple[Api, ...] = ("openai", "tei") if urlsplit(self.url).path else ("tei", "openai")
        for api in asked:
            self.api = api
            try:
                found = self._tei(tries) if api == "tei" else self._openai(tries)
            except Unlike:
                continue
            if found.get("listed", True):
                return found
        self.api = None
        raise UserError(
            f"{self.where}: answers neither /info, as TEI does, nor /models, as OpenAI's does; "
            f"state api: under source ({' or '.join(APIS)})"
        )

    def _tei(self, tries: int) -> Said:
        info = self._about("/info", tries)
        if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            raise Unlike(f"{self.where}: /info is not TEI's; check api: under source")
        if info["model_id"] != self.model:
            raise UserError(
                f"{self.where}: serves {printable(info['model_id'])}, not "
                f"{printable(self.model)}; set model: under source to what it serves"
            )
        kinds = info.get("model_type")
        kind = next(iter(kinds), None) if isinstance(kinds, dict) else kinds
        said = {
            "api": "tei",
            "model": info["model_id"],
            "revision": info.get("model_sha"),
            "kind": str(kind).lower() if kind else None,
            "pooling": kinds[kind].get("pooling") if isinstance(kinds, dict) and kind else None,
            "dtype": info.get("model_dtype"),
            "max_length": info.get("max_input_length"),
        }
        self.batch = min(BATCH, int(info.get("max_client_batch_size") or BATCH))
        return {k: v for k, v in said.items() if v is not None}

    def _openai(self, tries: int) -> Said:
        said: Said = {"api": "openai", "model": self.model}
        try:
            listed = self._about("/models", tries)
        except Unlike:
            return said | {"listed": False}  # not every server has the list
        rows = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(rows, list):
            raise Unlike(f"{self.where}: /models is not OpenAI's; check api: under source")
        known = {row["id"]: row for row in rows if isinstance(row, dict) and "id" in row}
        if self.model not in known:
            some = ", ".join(map(str, islice(known, 5)))
            raise UserError(
                f"{self.where}: has no model {printable(self.model)}"
                f"{nearest(self.model, known)}; it has {printable(some)}; set model: under source"
            )
        row = known[self.model]
        more = {k: row[k] for k in ("owned_by", "root", "parent") if row.get(k)}
        if isinstance(row.get("max_model_len"), int):
            more["max_length"] = row["max_model_len"]
        return said | more

    def _about(self, path: str, tries: int) -> Any:
        try:
            return self.send("GET", path, tries=tries)
        except Refused as error:
            raise Unlike(f"{self.where}: {path}: {error}") from None
        except UserError as error:
            if "refuses access" in str(error):
                raise
            raise Unlike(str(error)) from None

    # What it computes

    def embed(self, texts: Sequence[str], cut: Mapping[str, Any], tries: int = TRIES) -> Answer:
        """Vectors of `texts`, in their order. `cut`: fields that ask to cut long ones."""
        if self.api == "tei":
            # It would scale by itself; whether vectors are scaled is ours to say.
            asked = {"inputs": list(texts), "normalize": False, **cut}
            return Answer(self.matrix(self.send("POST", "/embed", asked, tries), len(texts)), 0)
        asked = {"model": self.model, "input": list(texts), "encoding_format": "float", **cut}
        found = self.send("POST", "/embeddings", asked, tries)
        rows = found.get("data") if isinstance(found, dict) else None
        usage = found.get("usage") if isinstance(found, dict) else None
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        vectors = self.matrix(self.in_order(rows, len(texts), "embedding"), len(texts))
        return Answer(vectors, tokens if isinstance(tokens, int) else 0)

    def in_order(self, rows: Any, count: int, name: str) -> list[Any]:
        """The field `name` of each of `count` answers, by the text that each says it is for."""
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{self.where}: its answer is not a list of results")
        if len(rows) != count:
            raise UserError(f"{self.where}: answers {len(rows)} results for {count} texts")
        found = {row.get("index"): row.get(name) for row in rows}
        if set(found) != set(range(count)):
            raise UserError(f"{self.where}: its results don't say which text each is for (index)")
        return [found[i] for i in range(count)]

    def matrix(self, rows: Any, count: int) -> np.ndarray:
        """(count, dimension) float32, what can't be a number as NaN."""
        if not isinstance(rows, list) or len(rows) != count:
            found = len(rows) if isinstance(rows, list) else "no list of"
            raise UserError(f"{self.where}: answers {found} vectors for {count} texts")
        try:
            vectors = np.array(rows, np.float32)
        except (ValueError, TypeError):
            vectors = np.empty(0, np.float32)
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise UserError(f"{self.where}: answers vectors that are not lists of one length")
        return vectors

    def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each of `texts` answers `query`: the model's own numbers, no sigmoid."""
        asked = {"query": query, "texts": list(texts), "raw_scores": True, **CUT["tei"]}
        rows = self.in_order(self.send("POST", "/rerank", asked), len(texts), "score")
        return [float(score) if isinstance(score, int | float) else float("nan") for score in rows]

    # Many requests

    def each(self, tasks: Iterable[Any], do: Any) -> Iterator[Any]:
        """`do(task)` of each, in order, `CONCURRENT` at a time and not far ahead."""
        source = iter(tasks)
        with ThreadPoolExecutor(CONCURRENT) as pool:
            waiting: list[Future[Any]] = []
            try:
                for task in source:
                    waiting.append(pool.submit(do, task))
                    if len(waiting) >= 2 * CONCURRENT:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            except BaseException:
                self.stopped.set()  # nobody waits for another try
                for future in waiting:
                    future.cancel()
                raise


class Unlike(UserError):
    """What answers doesn't speak the protocol that was asked."""


def _is_local(url: str) -> bool:
    """On this machine: what the environment says of proxies is not about it."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _message(response: httpx2.Response) -> str:
    """What an error's body says: OpenAI's {"error": {"message"}}, TEI's {"error"}, or its text."""
    try:
        body = response.json()
    except ValueError:
        return response.text
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    return body if isinstance(body, str) else str(body)


# What goes into keys


def server_identity(source: Mapping[str, Any], cache: Path) -> Said:
    """What decides a server's vectors, as far as anybody says: what keys are made of.

    The config's revision where it states one, else what the server says of itself; its address
    counts only where neither names a commit. A server that is silent now is what it was last time,
    remembered in `cache`. Raises `UserError` where it never answered.
    """
    if source.get("revision"):
        return {"server": source["model"], "revision": source["revision"]}
    memory = cache / "servers" / f"{digest(dict(source))}.json"
    server = Server(source["server"], source["model"], source.get("api"))
    with server, _told(server):
        try:
            said = server.introduce(tries=2)
        except Silent as error:
            if not memory.exists():
                raise
            print(f"{server.where}: {error}; taken to be as it last was", file=sys.stderr)
            return dict(read_json(memory))
    found: Said = {"server": source["model"], **said}
    if "revision" not in said:
        found["at"] = server.url
    if not memory.exists() or read_json(memory) != found:
        write_record(memory, found)
    return found


@contextmanager
def _told(server: Server) -> Iterator[None]:
    """A silent server in words."""
    try:
        yield
    except Silent as error:
        raise UserError(
            f"{server.where}: gives no answer ({error}); check its address, and whether it is up "
            "and not overloaded"
        ) from None


def fetch_server(source: Mapping[str, Any], folder: Path) -> list[str]:
    """Write what can be found out about a server to `folder`: the names of the files.

    What it says of itself, the length of its vectors, and how it is asked to cut long texts: None
    where it refuses them. Raises `UserError`.
    """
    server = Server(source["server"], source["model"], source.get("api"))
    with server, _told(server):
        said = server.introduce()
        stated, found = source.get("revision"), said.get("revision")
        if stated and found and stated != found:
            raise UserError(
                f"{server.where}: serves revision {printable(found)}, the config states "
                f"{printable(stated)}; correct revision:, or leave it out"
            )
        record = {"server": server.url, "said": said, "batch": server.batch}
        if said.get("kind") != "reranker":
            try:
                record["dimension"] = int(server.embed(["a"], {}).vectors.shape[1])
            except Refused as error:
                raise UserError(f"{server.where}: refuses to embed: {error}") from None
            record["cut"] = way_to_cut(server, said)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / RECORD, record)
    return [RECORD]


def way_to_cut(server: Server, said: Said) -> dict[str, Any] | None:
    """The fields that make a server take a text longer than its model, cut: {} for none needed."""
    assert server.api is not None
    if server.api == "tei":
        return dict(CUT["tei"])
    text = long_text(said)
    for fields in ({}, dict(CUT[server.api])):
        try:
            server.embed([text], fields, tries=2)
        except (Refused, Silent):
            continue
        return fields
    return None


def long_text(said: Said) -> str:
    """A text longer than the server's model takes, as far as it says what that is."""
    return "word " * (int(said.get("max_length") or LONG) + 8)


@contextmanager
def opened(known: Mapping[str, Any], url: str) -> Iterator[Server]:
    """The server at `url`, after asking whether it is still what was `known` of it (`RECORD`)."""
    said = known["said"]
    server = Server(url, said["model"], said["api"])
    with server, _told(server):
        now = server.introduce()
        if now != said:
            parts = sorted(k for k in now.keys() | said.keys() if now.get(k) != said.get(k))
            raise UserError(
                f"{server.where}: says another {', '.join(parts)} than when it was staged; run "
                "again, it is another model now"
            )
        server.batch = known["batch"]
        yield server
