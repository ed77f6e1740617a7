"""As much of Kubernetes' API as the executor plugin calls, on this machine: it keeps the jobs that
are asked for, and says of each that it failed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml


class KubernetesApi:
    def __enter__(self) -> "KubernetesApi":
        self.jobs: list[dict] = []
        handler = type("Bound", (Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        server = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        }
        path.write_text(yaml.safe_dump(config))


class Handler(BaseHTTPRequestHandler):
    api: KubernetesApi

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            self.api.jobs.append(body)
        self._answer(body)

    def do_GET(self) -> None:
        if "/pods" in self.path:
            self._answer({"kind": "PodList", "apiVersion": "v1", "items": []})
        else:
            self._answer({"kind": "Job", "apiVersion": "batch/v1", "status": {"failed": 1}})

    def do_DELETE(self) -> None:
        self._answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No line on the screen for each request."""
