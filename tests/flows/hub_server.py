"""A Hugging Face Hub on loopback: what huggingface_hub 2.4 and datasets 5.2 ask of the real one.

Repositories with branches and commits, private ones, tokens that may write, LFS by the basic
transfer, card validation, paged trees and, as on the Hub, files in LFS behind a redirect to a
server that knows ranges. State is in memory; every request is in `log`. Its clients need
HF_HUB_DISABLE_XET=1 (the Xet protocol is not here).
"""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

TOKEN = "hf_writer"
READER = "hf_reader"
NAMESPACE = "tester"
LFS_SUFFIXES = (".parquet", ".arrow", ".safetensors", ".bin", ".gz", ".zst")
LFS_SIZE = 10 << 20
PAGE = 10
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "odc-by", "gpl-3.0"}
LICENCES |= {"bsd-3-clause", "other", "unknown"}
SIZES = {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M"}
REF = r"(refs/(?:convert|pr)/[^/]+|[^/]+)"
REPO = r"([^/]+/[^/]+)"


@dataclass(frozen=True)
class Blob:
    """A file of a commit: in LFS its oid is the sha256, else git's sha1."""

    oid: str
    data: bytes
    lfs: bool

    def entry(self, path: str) -> dict:
        entry = {"type": "file", "oid": self.oid, "size": len(self.data), "path": path}
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\n"
            pointer += f"size {len(self.data)}\n"
            entry["oid"] = git_sha1(pointer.encode())
            entry["lfs"] = {"oid": self.oid, "size": len(self.data), "pointerSize": len(pointer)}
        return entry


@dataclass
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict[str, Blob]
    date: str


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> str:
        parent = self.branches.get(branch)
        content = [parent, title, len(self.commits), sorted((p, b.oid) for p, b in files.items())]
        sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.commits[sha] = Commit(sha, parent, title, files, date)
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"no revision {revision}")
        return self.commits[sha]

    @property
    def files(self) -> dict[str, Blob]:
        return self.at("main").files


@dataclass
class Trouble:
    """Requests whose line matches are answered with a status, a number of times."""

    pattern: str
    status: int
    times: int


class Refusal(Exception):
    """An answer that is an error, with the header from which clients choose their exception."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The server; a context manager that runs it in a thread."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.log: list[str] = []
        self.troubles: list[Trouble] = []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # as on the Hub, of another host: clients ask the first answer for size and commit
        self.storage_url = f"http://localhost:{self._server.server_port}/_storage"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: object, token: str = TOKEN) -> dict[str, str]:
        """The environment of a client process that knows no other Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        body = self._body()
        with self.hub.lock:
            try:
                self._route(body)
            except Refusal as refusal:
                headers = {"X-Error-Message": refusal.message}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                self.answer({"error": refusal.message}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, value: object = None, status: int = 200, headers: dict | None = None) -> None:
        raw = isinstance(value, bytes)
        data = value if raw else json.dumps(value).encode()
        self.hub.log.append(f"{self.command} {self.path} -> {status}")
        self.send_response(status)
        kind = "application/octet-stream" if raw else "application/json"
        fields = {"Content-Type": kind, "Content-Length": str(len(data)), "X-Request-Id": "test"}
        for name, text in (fields | (headers or {})).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, body: bytes) -> None:
        line = f"{self.command} {self.path}"
        for trouble in self.hub.troubles:
            if trouble.times and re.search(trouble.pattern, line):
                trouble.times -= 1
                raise Refusal(trouble.status, "", "trouble on purpose")
        url = urlsplit(self.path)
        self.query, self.body = parse_qs(url.query), body
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, unquote(url.path))
            if match and self.command in method.split():
                action(self, *match.groups())
                return
        raise Refusal(404, "", f"the test server does not know {line}")

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def repo(self, name: str, write: bool = False) -> Repo:
        """Finds a dataset repository that the token may see, or change."""
        repo = self.hub.repos.get(name)
        known = self.token in (TOKEN, READER)
        if repo is None or (repo.private and not known):
            raise Refusal(404 if known else 401, "RepoNotFound", "Repository not found")
        if write:
            self.may_write()
        return repo

    def may_write(self) -> None:
        if not self.token:
            raise Refusal(401, "", "Invalid username or password.")
        if self.token != TOKEN:
            raise Refusal(403, "", "Forbidden: this token does not have the write permission")

    def create(self) -> None:
        self.may_write()
        asked = self.json()
        name = f"{asked.get('organization') or NAMESPACE}/{asked['name']}"
        if asked.get("type") != "dataset":
            raise Refusal(400, "", "only datasets here")
        if not name.startswith(NAMESPACE + "/"):
            raise Refusal(403, "", f"Forbidden: no right to create a repository under {name}")
        url = {"url": f"{self.hub.url}/datasets/{name}"}
        if name in self.hub.repos:
            self.answer({"error": "You already created this dataset repo"} | url, 409)
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = self.hub.repos[name] = Repo(private)
        attributes = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES)
        data = attributes.encode()
        repo.commit("main", {".gitattributes": Blob(git_sha1(data), data, False)}, "initial commit")
        self.answer(url | {"name": name, "id": name})

    def validate(self) -> None:
        """Checks a card's metadata as the Hub does: some fields take known values only."""
        parts = self.json()["content"].split("---\n")
        card = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else {}
        licences = card.get("license", [])
        fields = {"license": licences if isinstance(licences, list) else [licences]}
        fields["size_categories"] = card.get("size_categories", [])
        known = {"license": LICENCES, "size_categories": SIZES}
        errors = [f"{n}: {v}" for n, values in fields.items() for v in values if v not in known[n]]
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        self.answer(answer, 400 if errors else 200)

    def preupload(self, name: str, revision: str) -> None:
        there = self.repo(name, write=True).at(revision).files
        files = []
        for asked in self.json()["files"]:
            path = asked["path"]
            lfs = asked["size"] > LFS_SIZE or path.endswith(LFS_SUFFIXES)
            oid = there[path].oid if path in there else None
            mode = {"uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            files.append({"path": path} | mode)
        self.answer({"files": files})

    def lfs_batch(self, name: str) -> None:
        self.repo(name, write=True)
        objects = []
        for asked in self.json()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.storage:
                upload = {"href": f"{self.hub.url}/_lfs/{asked['oid']}"}
                verify = {"href": f"{self.hub.url}/_lfs/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "bytes and oid differ")
        self.hub.storage[oid] = self.body
        self.answer({})

    def lfs_verify(self) -> None:
        asked = self.json()
        whole = len(self.hub.storage.get(asked["oid"], b"")) == asked["size"]
        self.answer({}, 200 if whole else 422)

    def commit(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        head = repo.at(branch)
        files, title = dict(head.files), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit", head.sha) != head.sha:
                    raise Refusal(412, "", "A commit has happened since. Please refresh.")
            elif kind == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = Blob(git_sha1(data), data, False)
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    raise Refusal(400, "", f"no such object: {value['oid']}")
                blob = Blob(value["oid"], self.hub.storage[value["oid"]], True)
                files[value["path"]] = blob
            elif kind == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                raise Refusal(400, "", f"no such operation here: {kind}")
        sha = repo.commit(branch, files, title)
        url = f"{self.hub.url}/datasets/{name}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def info(self, name: str, revision: str | None) -> None:
        repo = self.repo(name)
        head = repo.at(revision or "main")
        names = [{"rfilename": path} for path in sorted(head.files)]
        facts = {"id": name, "_id": "0", "author": name.split("/")[0], "sha": head.sha}
        facts |= {"private": repo.private, "gated": False, "disabled": False, "tags": []}
        dates = {"lastModified": head.date, "createdAt": head.date, "downloads": 0, "likes": 0}
        self.answer(facts | dates | {"siblings": names})

    def tree(self, name: str, revision: str, folder: str | None) -> None:
        files = self.repo(name).at(revision).files
        start = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict] = {}
        for path, blob in files.items():
            if not path.startswith(start):
                continue
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if deep else min(2, len(parts))):
                place = start + "/".join(parts[:depth])
                entries[place] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": place}
            if deep or len(parts) == 1:
                entries[path] = blob.entry(path)
        if start and not entries:
            raise Refusal(404, "EntryNotFound", f"no {folder}")
        found = [entries[path] for path in sorted(entries)]
        first = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(found):
            recursive = "true" if deep else "false"
            path = quote(urlsplit(self.path).path, safe="/%")
            page = f"{self.hub.url}{path}?recursive={recursive}&cursor={first + PAGE}"
            headers["Link"] = f'<{page}>; rel="next"'
        self.answer(found[first : first + PAGE], headers=headers)

    def resolve(self, name: str, revision: str, path: str) -> None:
        head = self.repo(name).at(revision)
        blob = head.files.get(path)
        if blob is None:
            raise Refusal(404, "EntryNotFound", f"Entry not found: {path}")
        headers = {"X-Repo-Commit": head.sha, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            size = {"X-Linked-Size": str(len(blob.data)), "X-Linked-Etag": f'"{blob.oid}"'}
            headers |= size | {"Location": f"{self.hub.storage_url}/{blob.oid}"}
            self.answer(b"", 302, headers)
        else:
            self.send_bytes(blob.data, headers)

    def stored(self, oid: str) -> None:
        self.send_bytes(self.hub.storage[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_bytes(self, data: bytes, headers: dict[str, str]) -> None:
        """Answers with data, or the range that was asked for."""
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.answer(data, headers=headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1 if first and last else len(data), len(data))
        if start >= stop:
            self.answer(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
            return
        headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self.answer(data[start:stop], 206, headers)


API = f"/api/datasets/{REPO}"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"{API}/preupload/{REF}", Handler.preupload),
    ("POST", rf"/datasets/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/_lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("POST", "/_lfs/verify", Handler.lfs_verify),
    ("POST", rf"{API}/commit/{REF}", Handler.commit),
    ("GET HEAD", rf"{API}(?:/revision/{REF})?", Handler.info),
    ("GET", rf"{API}/tree/{REF}(?:/(.*))?", Handler.tree),
    ("GET HEAD", rf"/datasets/{REPO}/resolve/{REF}/(.+)", Handler.resolve),
    ("GET HEAD", "/_storage/([0-9a-f]{64})", Handler.stored),
)
