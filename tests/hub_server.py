"""A Hub on a loopback port, in memory: the few endpoints that fetching and pushing use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


def commit_of(files: Files) -> str:
    """What stands for a commit hash: 40 digits of the content."""
    said = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in files.items()})
    return hashlib.sha1(said.encode()).hexdigest()


@dataclass
class Repo:
    """Files of a model repository by revision. ``pulls`` are commits that ask to be merged."""

    revisions: dict[str, Files]
    gated: bool = False
    pulls: list[Files] = field(default_factory=list)

    def at(self, revision: str) -> Files | None:
        """The files of a branch or commit."""
        commits = {commit_of(files): files for files in self.revisions.values()}
        return self.revisions.get(revision, commits.get(revision))


class Hub:
    """Serve ``repos`` until closed. ``asked`` lists what was: ``GET /api/models/...``."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.user = "me"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, files: Files, revision: str = "main", gated: bool = False) -> Repo:
        """A repository, or another revision of one."""
        repo = self.repos.setdefault(name, Repo({}, gated))
        repo.revisions[revision] = files
        return repo

    def downloads(self) -> list[str]:
        """The files that were fetched, with their repository."""
        return [line[4:] for line in self.asked if line.startswith("GET ") and "/resolve/" in line]

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # type: ignore[misc]
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # no connection outlives its answer

            def log_message(self, *args: Any) -> None:
                pass

            def answer(self, status: int, body: Any = b"", **headers: str) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def refuse(self, code: str, status: int = 404) -> None:
                self.answer(status, {"error": code}, X_Error_Code=code)

            def body(self) -> bytes:
                if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data

            def route(self) -> None:
                path = unquote(urlsplit(self.path).path)
                query = urlsplit(self.path).query
                hub.asked.append(f"{self.command} {path}")
                for pattern, respond in ROUTES:
                    if found := re.fullmatch(pattern, path):
                        respond(self, query, **found.groupdict())
                        return
                self.refuse("EntryNotFound")

            do_GET = do_HEAD = do_POST = do_PUT = route

            def files(self, repo: str, revision: str = "main") -> Files | None:
                """Those of a revision, or None after an error was answered."""
                found = hub.repos.get(repo)
                if found is None:
                    return self.refuse("RepoNotFound")
                if found.gated:
                    return self.refuse("GatedRepo", 403)
                files = found.at(revision)
                return self.refuse("RevisionNotFound") if files is None else files

            def info(self, query: str, repo: str, revision: str = "main") -> None:
                if (files := self.files(repo, revision)) is not None:
                    names = [{"rfilename": name} for name in files]
                    self.answer(200, {"id": repo, "sha": commit_of(files), "siblings": names})

            def tree(self, query: str, repo: str, revision: str) -> None:
                if (files := self.files(repo, revision)) is not None:
                    rows = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for name, data in files.items()
                    ]
                    self.answer(200, rows)

            def resolve(self, query: str, repo: str, revision: str, file: str) -> None:
                if (files := self.files(repo, revision)) is None:
                    return
                if file not in files:
                    return self.refuse("EntryNotFound")
                etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
                self.answer(200, files[file], ETag=etag, X_Repo_Commit=commit_of(files))

            def whoami(self, query: str) -> None:
                self.answer(200, {"name": hub.user, "type": "user", "orgs": []})

            def validate(self, query: str) -> None:
                self.answer(200, {"errors": [], "warnings": []})

            def create(self, query: str) -> None:
                said = json.loads(self.body())
                name = f"{said.get('organization') or hub.user}/{said['name']}"
                status = 409 if name in hub.repos else 200
                hub.repos.setdefault(name, Repo({"main": {}}))
                self.answer(status, {"url": f"{hub.url}/{name}", "name": name})

            def preupload(self, query: str, repo: str, revision: str) -> None:
                asked = json.loads(self.body())["files"]
                modes = {True: "lfs", False: "regular"}
                rows = [
                    {
                        "path": file["path"],
                        "uploadMode": modes[file["path"].endswith(".safetensors")],
                        "shouldIgnore": False,
                    }
                    for file in asked
                ]
                self.answer(200, {"files": rows})

            def batch(self, query: str, repo: str) -> None:
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/put/{one['oid']}"}}}
                    for one in json.loads(self.body())["objects"]
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})

            def put(self, query: str, oid: str) -> None:
                hub.large[oid] = self.body()
                self.answer(200)

            def commit(self, query: str, repo: str, revision: str) -> None:
                old = self.files(repo, revision)
                lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
                if old is None:
                    return
                files = dict(old)
                for line in lines:
                    said = line["value"]
                    if line["key"] == "file":
                        files[said["path"]] = base64.b64decode(said["content"])
                    elif line["key"] == "lfsFile":
                        files[said["path"]] = hub.large[said["oid"]]
                answer = {"commitUrl": f"{hub.url}/{repo}/commit/{commit_of(files)}"}
                answer["commitOid"] = commit_of(files)
                target = hub.repos[repo]
                if "create_pr=1" in query:
                    target.pulls.append(files)
                    number = len(target.pulls)
                    answer["pullRequestUrl"] = f"{hub.url}/{repo}/discussions/{number}"
                    target.revisions[f"refs/pr/{number}"] = files
                else:
                    target.revisions[revision] = files
                self.answer(200, answer)

        name, at = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>.+)"
        ROUTES = (
            (rf"/api/models/{name}", Handler.info),
            (rf"/api/models/{name}/revision/{at}", Handler.info),
            (rf"/api/models/{name}/tree/{at}", Handler.tree),
            (rf"/{name}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
            (r"/api/whoami-v2", Handler.whoami),
            (r"/api/repos/create", Handler.create),
            (r"/api/validate-yaml", Handler.validate),
            (rf"/api/models/{name}/preupload/{at}", Handler.preupload),
            (r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
            (r"/put/(?P<oid>\w+)", Handler.put),
            (rf"/api/models/{name}/commit/{at}", Handler.commit),
        )
        return Handler
