"""A stand-in Hugging Face hub on the loopback: what huggingface_hub asks of the real one, with faults on demand."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong with the next `times` GETs whose path contains `path`."""

    path: str
    times: int = 1
    status: int | None = None  # answer with this HTTP status
    error_code: str | None = None  # ... and this X-Error-Code
    cut_after: int | None = None  # close the connection after this many bytes of the body
    corrupt: bool = False  # send bytes of the right number and the wrong value
    ignore_range: bool = False  # answer a range request with 200 and the whole file


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Repository:
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    card: dict | None = None
    token: str | None = None  # gated: files need this bearer token, metadata does not (as on the real hub)


class HubServer:
    """`with HubServer() as hub:` then `hub.commit("org/name", {"config.json": b"..."})`; the address is `hub.url`."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        # Like the real hub, weights come from another origin, to which no token may go.
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> "HubServer":
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main", card: dict | None = None) -> str:
        """Make `files` the content of a branch; returns the new commit."""
        repository = self.repositories.setdefault(repo, Repository())
        commit = hashlib.sha1(repr((repo, len(repository.commits), sorted(files))).encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        repository.card = card or repository.card
        return commit

    def downloads(self, name: str) -> list[Request]:
        """The GET requests for a file so far, LFS redirects not counted."""
        found = [request for request in self.requests if request.method == "GET" and request.path.endswith(f"/{name}")]
        return [request for request in found if request.path.startswith("/lfs/") or not _is_lfs(name)]

    def fail(self, path: str, **fault) -> None:
        """Add a `Fault`."""
        self.faults.append(Fault(path, **fault))

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.path in path:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self):  # noqa: N802
        self.answer()

    def do_GET(self):  # noqa: N802
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, path, headers.get("Range"), headers.get("Authorization")))
        fault = self.hub.take_fault(path) if self.command == "GET" else None
        if fault and fault.status:
            return self.refuse(fault.status, fault.error_code)
        if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.model_info(found[1], found[2] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], found[2], found[3], fault)
        if found := re.fullmatch(r"/lfs/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            return self.send_file(self.hub.repositories[found[1]].commits[found[2]][found[3]], {}, fault)
        return self.refuse(404, None)

    def find(self, repo: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit a revision stands for; None after answering that there is none."""
        repository = self.hub.repositories.get(repo)
        if repository is None:  # the real hub hides whether it exists
            return self.refuse(401, "RepoNotFound")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        return repository, commit

    def model_info(self, repo: str, revision: str):
        if not (found := self.find(repo, revision)):
            return
        repository, commit = found
        siblings = []
        for name, content in repository.commits[commit].items():
            sibling = {"rfilename": name, "size": len(content), "blobId": _git_blob(content)}
            if _is_lfs(name):
                sibling["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        info = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings}
        info |= {"gated": "auto" if repository.token else False, "tags": [], "cardData": repository.card}
        self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def resolve(self, repo: str, revision: str, name: str, fault: Fault | None):
        if not (found := self.find(repo, revision)):
            return
        repository, commit = found
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self.refuse(401, "GatedRepo")
            return
        content = repository.commits[commit].get(name)
        if content is None:
            self.refuse(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit}
        if not _is_lfs(name):
            self.send_file(content, headers | {"ETag": f'"{_git_blob(content)}"'}, fault)
            return
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{_sha256(content)}"'}
        self.send(302, b"", headers | {"Location": f"{self.hub.cdn_url}/lfs/{repo}/{commit}/{name}"})

    def send_file(self, content: bytes, headers: dict[str, str], fault: Fault | None):
        if fault and fault.corrupt:
            content = bytes(byte ^ 0xFF for byte in content)
        status, total = 200, len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not (fault and fault.ignore_range):
            start, end = int(wanted[1]), min(int(wanted[2] or total), total - 1)
            if start >= total:
                return self.send(416, b"", {"Content-Range": f"bytes */{total}"})
            status, content = 206, content[start : end + 1]
            headers = headers | {"Content-Range": f"bytes {start}-{end}/{total}"}
        return self.send(status, content, headers, fault.cut_after if fault else None)

    def refuse(self, status: int, error_code: str | None) -> None:
        self.send(status, b"{}", {"X-Error-Code": error_code} if error_code else {})

    def send(self, status: int, body: bytes, headers: dict[str, str], cut_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut_after])
        if cut_after is not None:
            self.close_connection = True


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
