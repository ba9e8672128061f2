"""A hub on 127.0.0.1: as much of the Hugging Face HTTP interface as its client needs to push and to pull.

Repositories with commits, private ones, regular files and Git LFS (every safetensors file, and whatever is over
``lfs_bytes``), byte ranges. It can be told to misbehave: to cut a transfer after some bytes, to flip a byte, to lose a
file. It announces no Xet storage, so the client takes its HTTP fallback.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34


class Hub:
    """The server; use it as a context manager.

    Attributes:
        commits: repository -> list of (commit, files by path), the first one empty.
        private: names of private repositories.
        log: (method, path, Range header) of every request.
        cut: path in a repository -> how many transfers of it break off after half of their bytes.
        flip: paths in a repository of which one byte arrives changed.
        lost: paths in a repository that are listed but not there.
    """

    def __init__(self, lfs_bytes: int = 10 * 2**20) -> None:
        self.lfs_bytes = lfs_bytes
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str]] = []
        self.cut: dict[str, int] = {}
        self.flip: set[str] = set()
        self.lost: set[str] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        # A short poll: shutting down waits for it.
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a commit."""
        commits = self.commits[repository]
        return commits[-1][1] if revision == "main" else dict(commits)[revision]

    def head(self, repository: str) -> str:
        """The last commit."""
        return self.commits[repository][-1][0]

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Adds a commit with exactly these files."""
        number = len(self.commits.setdefault(repository, []))
        sha = hashlib.sha1(f"{repository} {number}".encode()).hexdigest()
        self.commits[repository].append((sha, files))
        return sha

    def transfers(self, suffix: str) -> list[tuple[str, str, str]]:
        """Downloads of files whose path ends so."""
        return [entry for entry in self.log if entry[0] == "GET" and "/resolve/" in entry[1] and suffix in entry[1]]

    def is_lfs(self, path: str, size: int) -> bool:
        return path.endswith(".safetensors") or size > self.lfs_bytes


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        # ---- plumbing

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, code: int, content: object = b"", **headers: str) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            for name, value in {"Content-Length": str(len(data)), "Content-Type": kind, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, what: str) -> None:
            # As the real one: a repository that may not be seen is answered like one that does not exist.
            code = 401 if what == "RepoNotFound" else 404
            self.answer(code, {"error": what}, X_Error_Code=what, X_Error_Message=what)

        def authorised(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def visible(self, repository: str) -> bool:
            return repository in hub.commits and (repository not in hub.private or self.authorised())

        def found(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
            if not self.visible(repository):
                self.missing("RepoNotFound")
                return None
            commits = hub.commits[repository]
            for sha, files in commits:
                if revision == sha or (revision == "main" and sha == commits[-1][0]):
                    return sha, files
            self.missing("RevisionNotFound")
            return None

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.log.append((self.command, path, self.headers.get("Range", "")))
            data = self.body()
            for pattern, route in ROUTES:
                if match := re.fullmatch(pattern, path):
                    route(self, data, *match.groups())
                    return
            self.answer(404, {"error": f"no route {path}"})

        do_HEAD = do_POST = do_PUT = do_GET

        # ---- routes

        def create(self, data: bytes) -> None:
            if not self.authorised():
                self.answer(401, {"error": "Invalid username or password."})
                return
            wanted = json.loads(data)
            repository = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
            if repository in hub.commits:
                self.answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{repository}"})
                return
            hub.commit(repository, {})
            if wanted.get("private") or wanted.get("visibility") == "private":
                hub.private.add(repository)
            self.answer(200, {"url": f"{hub.url}/{repository}", "id": repository, "name": repository})

        def validate(self, _: bytes) -> None:
            self.answer(200, {"errors": [], "warnings": []})

        def preupload(self, data: bytes, repository: str, _: str) -> None:
            if not (self.visible(repository) and self.authorised()):
                self.missing("RepoNotFound")
                return
            modes = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if hub.is_lfs(entry["path"], entry["size"]) else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(data)["files"]
            ]
            self.answer(200, {"files": modes})

        def lfs_batch(self, data: bytes, repository: str) -> None:
            objects = []
            for entry in json.loads(data)["objects"]:
                upload = {"upload": {"href": f"{hub.url}/lfs/{entry['oid']}", "header": {}}}
                there = entry["oid"] in hub.objects
                objects.append(entry if there else {**entry, "authenticated": True, "actions": upload})
            self.answer(200, {"transfer": "basic", "objects": objects})

        def lfs_put(self, data: bytes, oid: str) -> None:
            if hashlib.sha256(data).hexdigest() != oid:
                self.answer(400, {"error": "the content has another hash"})
                return
            hub.objects[oid] = data
            self.answer(200)

        def push(self, data: bytes, repository: str, _: str) -> None:
            if not (self.visible(repository) and self.authorised()):
                self.missing("RepoNotFound")
                return
            files = dict(hub.files(repository))
            for line in data.decode().splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif operation["key"] == "deletedFile":
                    del files[value["path"]]
            sha = hub.commit(repository, files)
            self.answer(200, {"commitUrl": f"{hub.url}/{repository}/commit/{sha}", "commitOid": sha, "success": True})

        def tree(self, _: bytes, repository: str, revision: str) -> None:
            if (commit := self.found(repository, revision)) is None:
                return
            entries = []
            for path, content in commit[1].items():
                entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                if hub.is_lfs(path, len(content)):
                    oid = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
                entries.append(entry)
            self.answer(200, entries)

        def info(self, _: bytes, repository: str, revision: str | None = None) -> None:
            if (commit := self.found(repository, revision or "main")) is None:
                return
            siblings = [{"rfilename": path} for path in commit[1]]
            content = {"id": repository, "modelId": repository, "sha": commit[0], "siblings": siblings, "tags": []}
            self.answer(200, {**content, "private": repository in hub.private})

        def resolve(self, _: bytes, repository: str, revision: str, path: str) -> None:
            if (commit := self.found(repository, revision)) is None:
                return
            sha, files = commit
            if path not in files or path in hub.lost:
                self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
                return
            content = files[path]
            headers = {"X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
            if hub.is_lfs(path, len(content)):
                oid = hashlib.sha256(content).hexdigest()
                headers |= {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content)), "ETag": f'"{oid}"'}
            else:
                headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            if path in hub.flip:
                content = content[:-1] + bytes([content[-1] ^ 1])
            code, start = 200, 0
            if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                code, start = 206, int(wanted[1])
                headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if self.command == "GET" and hub.cut.get(path, 0) > 0:
                hub.cut[path] -= 1
                self.send_response(code)
                for name, value in {**headers, "Content_Length": str(len(content) - start)}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content[start : start + (len(content) - start) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            self.answer(code, content[start:], **headers)

    model = r"/api/models/([^/]+/[^/]+)"
    ROUTES = [
        (r"/api/repos/create", Handler.create),
        (r"/api/validate-yaml", Handler.validate),
        (model + r"/preupload/(.+)", Handler.preupload),
        (model + r"/commit/(.+)", Handler.push),
        (model + r"/tree/([^/]+)", Handler.tree),
        (model + r"/revision/(.+)", Handler.info),
        (model, Handler.info),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
        (r"/lfs/([0-9a-f]{64})", Handler.lfs_put),
        (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
    ]
    return Handler
