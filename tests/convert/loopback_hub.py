"""A hub on this machine: as much of its protocol as `huggingface_hub` speaks to fetch and to publish models."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

TOKEN = "hf_secret"
LARGE = (".safetensors", ".ckpt", ".bin")


class Hub(http.server.ThreadingHTTPServer):
    """Its repositories, and what was asked of it.

    Attributes:
      repos: files by path, by repository; a repository has one commit, named by its content.
      private: repositories that need the token, also to be published to.
      requests: method and path of each, without its query.
      blobs: large files that were sent, by their hash; a commit names them.
      commits: numbers of files of each.
      fault: of the next answers, by a word of their path: "refuse" says 403; "cut" sends half of a file.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.blobs: dict[str, bytes] = {}
        self.commits: list[int] = []
        self.fault: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no matter of the test's output."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def answer(self, value: Any = None, status: int = 200, body: bytes | None = None, **headers: str) -> None:
        body = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self) -> None:
        path = self.path.partition("?")[0]
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, path))
        if any(word in path for word, kind in self.server.fault.items() if kind == "refuse"):
            self.answer({"error": "no"}, 403)
            return
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, path):
                method(self, content, *match.groups())
                return
        self.answer({"error": path}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def files(self, repo: str) -> dict[str, bytes] | None:
        """The repository's files, unless the client must not see it; then it has its answer."""
        allowed = repo not in self.server.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo in self.server.repos and allowed:
            return self.server.repos[repo]
        self.answer({"error": "?"}, 401 if repo in self.server.private else 404, X_Error_Code="RepoNotFound")
        return None

    def info(self, _: bytes, repo: str, revision: str) -> None:
        if (files := self.files(repo)) is not None:
            if revision not in ("main", commit(files)):
                self.answer({"error": "?"}, 404, X_Error_Code="RevisionNotFound")
                return
            self.answer({"id": repo, "sha": commit(files), "siblings": [{"rfilename": path} for path in files]})

    def tree(self, _: bytes, repo: str) -> None:
        if (files := self.files(repo)) is not None:
            self.answer([entry(path, content) for path, content in files.items()])

    def resolve(self, _: bytes, repo: str, revision: str, path: str) -> None:
        files = self.files(repo)
        if files is None:
            return
        body = files[path]
        oid = entry(path, body).get("lfs", entry(path, body))["oid"]
        begin = int(re.sub(r"bytes=(\d*)-.*", r"\1", self.headers.get("Range", "bytes=0-")))
        headers = {"ETag": f'"{oid}"', "X_Repo_Commit": commit(files), "Content_Length": str(len(body) - begin)}
        cut = any(word in path for word, kind in self.server.fault.items() if kind == "cut")
        if cut and self.command == "GET":
            self.server.fault.clear()
            self.answer(body=body[: len(body) // 2], **headers)
            self.close_connection = True
        else:
            self.answer(body=body[begin:], status=206 if begin else 200, **headers)

    def create(self, content: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "who?"}, 401)
            return
        asked = json.loads(content)
        name = f"{asked['organization']}/{asked['name']}"
        self.server.repos.setdefault(name, {})
        self.answer({"url": f"{self.server.url}/{name}", "id": name})

    def validate(self, _: bytes) -> None:
        self.answer({"errors": [], "warnings": []})

    def preupload(self, content: bytes, _: str) -> None:
        mode = lambda path: "lfs" if path.endswith(LARGE) else "regular"
        paths = [file["path"] for file in json.loads(content)["files"]]
        self.answer({"files": [{"path": path, "uploadMode": mode(path), "shouldIgnore": False} for path in paths]})

    def batch(self, content: bytes, _: str) -> None:
        objects = [
            each | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}}}
            for each in json.loads(content)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def put(self, content: bytes, oid: str) -> None:
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.blobs[oid] = content
        self.answer({})

    def commit(self, content: bytes, repo: str) -> None:
        added = {}
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.server.blobs[value["oid"]]
        self.server.repos[repo] |= added
        self.server.commits.append(len(added))
        oid = commit(self.server.repos[repo])
        self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid})


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the listing has it."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}}
    return {"type": "file", "path": path, "size": len(content), "oid": oid} | (large if path.endswith(LARGE) else {})


REPO = r"([\w-]+/[\w.-]+)"
ROUTES = (
    (f"/api/models/{REPO}/revision/(.+)", Handler.info),
    (f"/api/models/{REPO}/tree/.+", Handler.tree),
    (f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("/api/repos/create", Handler.create),
    ("/api/validate-yaml", Handler.validate),
    (f"/api/models/{REPO}/preupload/main", Handler.preupload),
    (f"/{REPO}.git/info/lfs/objects/batch", Handler.batch),
    ("/lfs/(.+)", Handler.put),
    (f"/api/models/{REPO}/commit/main", Handler.commit),
)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
