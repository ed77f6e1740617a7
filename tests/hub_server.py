"""A small hub on this machine, with faults on demand, for tests of what talks to the real one.

    with HubServer({"Org/Name-1.5B": {"config.json": b"{}", "model.safetensors": data}}) as hub:
        hub.fail("model.safetensors", "truncate", times=1)
        subprocess.run([...], env=hub.env(HF_TOKEN="hf_…"))

It speaks what huggingface_hub 2.4 and datasets 5.2 use: info, tree and paths-info of a repository,
and `resolve` with ETag, ranges and, for weights and tables, a redirect to a second server (another
port, so another origin), as the real hub does for LFS files. Only plain HTTP, no xet.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".parquet", ".model")
IN_BODY = ("truncate", "wrong", "slow")  # faults of a file's own bytes, not of the way to them
SIGNATURE = "X-Amz-Signature=5e11a7e"  # stands for the secret in a CDN's URL


class Repo:
    """One repository at one commit, whose hash is given or follows from the contents."""

    def __init__(
        self, kind: str, name: str, files: Mapping[str, bytes], commit: str | None = None
    ) -> None:
        self.kind, self.name, self.files = kind, name, dict(files)
        shas = {file: hashlib.sha256(data).hexdigest() for file, data in self.files.items()}
        self.sha256 = shas
        made = hashlib.sha1(json.dumps([name, shas], sort_keys=True).encode()).hexdigest()
        self.commit = commit or made

    def is_lfs(self, file: str) -> bool:
        return file.endswith(LFS)

    def oid(self, file: str) -> str:
        """Git's hash of the blob; of an LFS file any stable hash does."""
        data = self.files[file]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def etag(self, file: str) -> str:
        return self.sha256[file] if self.is_lfs(file) else self.oid(file)

    def sibling(self, file: str) -> dict:
        entry = {"rfilename": file, "size": len(self.files[file]), "blobId": self.oid(file)}
        if self.is_lfs(file):
            entry["lfs"] = {"size": entry["size"], "sha256": self.sha256[file], "pointerSize": 134}
        return entry

    def info(self, blobs: bool) -> dict:
        siblings = [self.sibling(f) if blobs else {"rfilename": f} for f in sorted(self.files)]
        facts = {"id": self.name, "sha": self.commit, "siblings": siblings, "tags": []}
        return facts | {"private": False, "gated": False, "disabled": False, "downloads": 0}

    def node(self, file: str) -> dict:
        entry = {"type": "file", "path": file, "oid": self.oid(file)}
        entry["size"] = len(self.files[file])
        if self.is_lfs(file):
            entry["lfs"] = {"oid": self.sha256[file], "size": entry["size"], "pointerSize": 134}
        return entry

    def tree(self, folder: str, recursive: bool) -> list[dict] | None:
        """Files and folders below `folder`, or None if there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        inside = [file for file in sorted(self.files) if file.startswith(prefix)]
        if folder and not inside:
            return None
        nodes = {}
        for file in inside:
            parts = file[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                path = prefix + "/".join(parts[:depth])
                nodes[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                nodes[file] = self.node(file)
        return list(nodes.values())


class HubServer:
    """Serve `repos` (models) and `datasets`, each name → {file: bytes}.

    `gated` and `private` are names that need `token`; `commits` gives names the hash of a commit
    that they have elsewhere. `requests` holds (method, path, headers
    with lower-case names) of all requests to both origins, `sent` the bytes sent per file name.
    """

    def __init__(
        self,
        repos: Mapping[str, Mapping[str, bytes]] | None = None,
        datasets: Mapping[str, Mapping[str, bytes]] | None = None,
        gated: tuple[str, ...] = (),
        private: tuple[str, ...] = (),
        token: str = "hf_only_for_tests",
        commits: Mapping[str, str] | None = None,
    ) -> None:
        pinned = commits or {}
        given = {"models": repos or {}, "datasets": datasets or {}}
        self.repos = {
            (kind, name): Repo(kind, name, files, pinned.get(name))
            for kind, group in given.items()
            for name, files in group.items()
        }
        self.gated, self.private, self.token = gated, private, token
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent: dict[str, int] = {}
        self._faults: list[list] = []
        self._lock = threading.Lock()
        self._servers = [self._start(), self._start()]

    def _start(self) -> ThreadingHTTPServer:
        server = Server(("127.0.0.1", 0), Handler)
        server.hub = self
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def commit(self, name: str, kind: str = "models") -> str:
        return self.repos[kind, name].commit

    def env(self, **extra: str) -> dict[str, str]:
        """Environment for a subprocess that shall talk to this hub and to nothing else."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        kept |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return kept | {"HF_HUB_DISABLE_TELEMETRY": "1"} | extra

    def fail(self, pattern: str, kind: str, times: int = 1, value: float = 0) -> None:
        """Make the next `times` requests whose path matches the regex `pattern` go wrong.

        For the last three kinds the path is the file's name in the repository.

        Kinds: a status ("429" with Retry-After: `value`, "500", "401", "403", "404", …), "silent"
        (no answer for `value` seconds), "html" (some portal's page), "truncate" (half of the
        body), "wrong" (right length, wrong bytes), "slow" (`value` bytes per second).
        """
        with self._lock:
            self._faults.append([re.compile(pattern), kind, times, value])

    def unspent(self) -> int:
        """How many of the asked-for faults did not happen yet."""
        return sum(fault[2] for fault in self._faults)

    def fault(self, path: str, in_body: bool = False) -> tuple[str, float]:
        with self._lock:
            for fault in self._faults:
                fits = (fault[1] in IN_BODY) == in_body and fault[0].search(path)
                if fault[2] > 0 and fits:
                    fault[2] -= 1
                    return fault[1], fault[3]
        return "", 0

    def count(self, file: str, size: int) -> None:
        with self._lock:
            self.sent[file] = self.sent.get(file, 0) + size


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, which some tests do, is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing on the tests' screen."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub: HubServer = self.server.hub
        url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query, path = parse_qs(url.query), unquote(url.path)
        hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        self.kind, self.value = hub.fault(path)
        if self.kind == "silent":
            threading.Event().wait(self.value)
            self.close_connection = True
        elif self.kind == "html":
            self.send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        elif self.kind.isdigit():
            wait = {"Retry-After": f"{self.value:g}"} if self.kind == "429" else {}
            self.send(int(self.kind), b"", wait)
        elif match := re.fullmatch(r"/cdn/(models|datasets)/(.+?)//(.+)", path):
            self.send_file(hub.repos[match[1], match[2]], match[3])
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)", path):
            self.repository(match[1], match[2], None, self.send_info)
        elif match := re.fullmatch(
            r"/api/(models|datasets)/(.+?)/(revision|tree|paths-info)/([^/]+)(?:/(.*))?", path
        ):
            act = {"revision": self.send_info, "tree": self.send_tree}.get(
                match[3], self.send_paths
            )
            self.folder = (match[5] or "").strip("/")
            self.repository(match[1], match[2], match[4], act)
        elif match := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
            self.file = match[4]
            kind = "datasets" if match[1] else "models"
            self.repository(kind, match[2], match[3], self.resolve)
        else:
            self.error(404, "EntryNotFound")

    def repository(self, kind: str, name: str, revision: str | None, act) -> None:
        """Look a repository up, keep out who may not see it, and `act` on it."""
        hub: HubServer = self.server.hub
        repo = hub.repos.get((kind, name))
        known = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if repo is None or (name in hub.private and not known):
            self.error(401, "RepoNotFound", "Invalid username or password.")
        elif name in hub.gated and not known and act == self.resolve:
            status = 403 if "Authorization" in self.headers else 401
            self.error(status, "GatedRepo", "Access to this model is restricted.")
        elif revision not in (None, "main", repo.commit):
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            act(repo)

    def send_info(self, repo: Repo) -> None:
        self.send_json(repo.info("blobs" in self.query))

    def send_tree(self, repo: Repo) -> None:
        nodes = repo.tree(self.folder, self.query.get("recursive") == ["True"])
        if nodes is None:
            self.error(404, "EntryNotFound", f"{self.folder} does not exist")
        else:
            self.send_json(nodes)

    def send_paths(self, repo: Repo) -> None:
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        tree = {node["path"]: node for node in repo.tree("", recursive=True)}
        self.send_json([tree[path] for path in paths if path in tree])

    def resolve(self, repo: Repo) -> None:
        if self.file not in repo.files:
            self.error(404, "EntryNotFound", "Entry not found")
            return
        if not repo.is_lfs(self.file):
            self.send_file(repo, self.file)
            return
        target = f"{self.server.hub.cdn}/cdn/{repo.kind}/{repo.name}//{self.file}?{SIGNATURE}"
        linked = {"X-Linked-Size": str(len(repo.files[self.file]))}
        linked |= {"X-Linked-Etag": f'"{repo.etag(self.file)}"', "X-Repo-Commit": repo.commit}
        self.send(302, b"", linked | {"Location": target})

    def send_file(self, repo: Repo, file: str) -> None:
        data, status = repo.files[file], 200
        self.kind, self.value = self.server.hub.fault(file, in_body=True)
        facts = {"ETag": f'"{repo.etag(file)}"', "X-Repo-Commit": repo.commit}
        facts["Accept-Ranges"] = "bytes"
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), int(match[2] or len(data) - 1)
            facts["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            status, data = (206, data[start : end + 1]) if start < len(data) else (416, b"")
        if self.kind == "wrong":
            data = bytes(byte ^ 1 for byte in data)
        self.send(status, data, facts, file)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, message: str = "") -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": message or code})

    def send(self, status: int, data: bytes, headers: Mapping[str, str], file: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.kind == "truncate":
            data, self.close_connection = data[: len(data) // 2], True
        step = max(int(self.value / 20), 1) if self.kind == "slow" else 1 << 16
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            self.server.hub.count(file, len(data[start : start + step]))
            if self.kind == "slow":
                threading.Event().wait(0.05)
