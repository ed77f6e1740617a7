"""A small embedding server on this machine, with faults on demand: TEI's protocol and OpenAI's.

    with EmbeddingServer(folder, "tei") as server:
        server.fail("/embed", "429", times=2)
        config["models"] = [{"id": "me/m", "source": {"server": server.url}}]

Its vectors are sentence-transformers' own, one text at a time; a reranker's scores are
`CrossEncoder`'s.
"""

import json
import re
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class EmbeddingServer:
    """Serve the sentence-transformers folder `folder` by `api` (tei, openai, or both).

    `key`: what has to come as the bearer token. `about`: laid over what it says of itself.
    `requests` holds (path, headers with lower-case names, body) of all requests, `most` how many
    were under way at once. `longest`: characters of a text, above which OpenAI's refuses it.
    """

    def __init__(
        self,
        folder: Path,
        api: str = "both",
        name: str = "me/m",
        key: str = "",
        reranker: bool = False,
        about: dict | None = None,
        longest: int = 2000,
        port: int = 0,
    ) -> None:
        self.folder, self.api, self.name, self.key = folder, api, name, key
        self.reranker, self.about, self.longest = reranker, about or {}, longest
        self.requests: list[tuple[str, dict[str, str], dict]] = []
        self.under_way = self.most = 0
        self.vllm = False  # takes truncate_prompt_tokens
        self._faults: list[list] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.embedder = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._known: dict[object, object] = {}
        self._model: Callable | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "EmbeddingServer":
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, kind: str, times: int = 1) -> None:
        """Make the next `times` requests whose path matches `pattern` go wrong.

        Kinds: a status ("429", "500", …), "drop" (no answer), "cut" (half of one), "shuffled"
        (right, in another order), "unnumbered", "twice" (an index), "short", "null", "wide".
        """
        with self._lock:
            self._faults.append([re.compile(pattern), kind, times])

    def unspent(self) -> int:
        return sum(fault[2] for fault in self._faults)

    def fault(self, path: str) -> str:
        with self._lock:
            for fault in self._faults:
                if fault[2] > 0 and fault[0].search(path):
                    fault[2] -= 1
                    return fault[1]
        return ""

    def model(self) -> Callable:
        if self._model is None:
            if self.reranker:
                from sentence_transformers import CrossEncoder

                scorer = CrossEncoder(str(self.folder), device="cpu")
                self._model = lambda pair: float(scorer.predict([pair], activation_fn=_same)[0])
            else:
                encoder = sentence_transformer(self.folder)
                self._model = lambda text: encoder.encode(text).tolist()
        return self._model

    def of(self, asked: object) -> object:
        """The vector of a text, the score of a pair; each computed once."""
        with self._lock:
            if asked not in self._known:
                self._known[asked] = self.model()(asked)
            return self._known[asked]

    def info(self) -> dict:
        kind = (
            {"reranker": {"id2label": {}}} if self.reranker else {"embedding": {"pooling": "mean"}}
        )
        return {
            "model_id": self.name,
            "model_sha": COMMIT,
            "model_dtype": "float32",
            "model_type": kind,
            "max_input_length": 160,
            "max_client_batch_size": 5,
            "version": "1.8.2",
        } | self.about

    def models(self) -> dict:
        row = {"id": self.name, "object": "model", "created": len(self.requests)}
        return {"object": "list", "data": [row | {"owned_by": "us"} | self.about]}


@cache
def sentence_transformer(folder: Path) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def _same(scores: object) -> object:
    return scores


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing on the tests' screen."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        server: EmbeddingServer = self.server.embedder
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(data) if data else {}
        headers = {k.lower(): v for k, v in self.headers.items()}
        server.requests.append((self.path, headers, body))
        self.kind = server.fault(self.path)
        with server._lock:
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        try:
            self.respond(server, body)
        finally:
            with server._lock:
                server.under_way -= 1

    def respond(self, server: EmbeddingServer, body: dict) -> None:
        tei, openai = (server.api in (name, "both") for name in ("tei", "openai"))
        if self.kind == "drop":
            self.close_connection = True
        elif self.kind.isdigit():
            self.send(int(self.kind), {"error": "Model is overloaded"})
        elif server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            said = f"wrong key {self.headers.get('Authorization')}"
            self.send(401, {"error": {"message": said}})
        elif tei and self.path == "/info":
            self.send(200, server.info())
        elif tei and self.path == "/embed" and not server.reranker:
            self.tei(server, body)
        elif tei and self.path == "/rerank" and server.reranker:
            self.rerank(server, body)
        elif openai and self.path == "/v1/models":
            self.send(200, server.models())
        elif openai and self.path == "/v1/embeddings":
            self.openai(server, body)
        else:
            self.send(404, {"error": "no such place"})

    def tei(self, server: EmbeddingServer, body: dict) -> None:
        texts = body["inputs"]
        if len(texts) > 5:
            self.send(422, {"error": "batch size > maximum allowed batch size 5"})
        elif "" in texts:
            self.send(413, {"error": "`inputs` cannot be empty"})
        else:
            assert body["normalize"] is False
            self.send(200, self.spoilt([server.of(text) for text in texts]))

    def openai(self, server: EmbeddingServer, body: dict) -> None:
        texts = body["input"]
        assert body["model"] == server.name
        cut = server.vllm and body.get("truncate_prompt_tokens") == -1
        if max(map(len, texts)) > server.longest and not cut:
            self.send(400, {"error": {"message": "This model's maximum context length is 160"}})
            return
        rows = [
            {"object": "embedding", "index": i, "embedding": server.of(text)}
            for i, text in enumerate(texts)
        ]
        if self.kind == "shuffled":
            rows.reverse()
        if self.kind == "unnumbered":
            rows = [{"embedding": row["embedding"]} for row in rows]
        if self.kind == "twice":
            rows = [row | {"index": 0} for row in rows]
        if self.kind in ("short", "null", "wide"):
            vectors = self.spoilt([row["embedding"] for row in rows])
            rows = [row | {"embedding": v} for row, v in zip(rows, vectors, strict=False)]
        self.send(200, {"data": rows, "usage": {"prompt_tokens": sum(map(len, texts))}})

    def rerank(self, server: EmbeddingServer, body: dict) -> None:
        assert body["raw_scores"] is True and len(body["texts"]) <= 5
        scores = [server.of((body["query"], text)) for text in body["texts"]]
        rows = [{"index": i, "score": score} for i, score in enumerate(scores)]
        self.send(200, sorted(rows, key=lambda row: -row["score"]))

    def spoilt(self, vectors: list) -> list:
        if self.kind == "short":
            return vectors[:-1]
        if self.kind == "null":
            return [[None, *vectors[0][1:]], *vectors[1:]]
        if self.kind == "wide":
            return [[*vector, 0.0] for vector in vectors]
        return vectors

    def send(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.kind == "cut":
            data, self.close_connection = data[: len(data) // 2], True
        self.wfile.write(data)
