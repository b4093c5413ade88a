"""A Hugging Face hub on this machine: answers what its client asks about models, and counts the requests.

A repository is a dictionary of revisions; a revision is a commit with its files. In a folder the same lies as
`OWNER/NAME/COMMIT/FILE`, and a file `OWNER/NAME/refs` says as JSON at which commit each branch is.
"""

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Repository:
    """One model."""

    commits: dict[str, dict[str, bytes]]
    """Files by commit."""
    refs: dict[str, str]
    """Commits by branch or tag."""
    gated: bool = False
    torn: bool = False
    """Whether only the first half of a file is ever sent."""

    @classmethod
    def of(cls, files: dict[str, bytes], **more: Any) -> "Repository":
        """A repository with one commit, on the branch main."""
        commit = commit_of(files)
        return cls({commit: files}, {"main": commit}, **more)

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Move a branch to a commit with these files: the commit."""
        commit = commit_of(files)
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit


def commit_of(files: dict[str, bytes]) -> str:
    """40 hexadecimal digits that depend on the files."""
    text = json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}, sort_keys=True)
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class FakeHub:
    """The hub while it is served."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    """`METHOD /path` and how often it was asked for."""
    address: str = ""

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.requests[f"{method} {path}"] += 1
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.refs.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if api:
            known = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(known).encode()
        if repository.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Repo-Commit": commit}, b""
        content = files.get("/".join(rest[2:]))
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": commit, "X-Torn": str(repository.torn)}, content


@contextmanager
def serve(repositories: dict[str, Repository] | None = None) -> Iterator[FakeHub]:
    """A hub that is served on the loopback until the block is left."""
    hub = FakeHub(repositories if repositories is not None else {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            status, headers, body = hub.answer(self.command, self.path)
            self.send_response(status)
            torn = headers.pop("X-Torn", "") == "True"
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if torn else body)
                self.close_connection = torn

        do_GET = do_HEAD = reply

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def repositories_in(folder: Path) -> dict[str, Repository]:
    """The repositories of a folder."""
    found = {}
    for refs in folder.glob("*/*/refs"):
        commits = {
            commit.name: {file.name: file.read_bytes() for file in commit.iterdir()}
            for commit in refs.parent.iterdir()
            if commit.is_dir()
        }
        found[refs.parent.relative_to(folder).as_posix()] = Repository(commits, json.loads(refs.read_text()))
    return found


if __name__ == "__main__":
    with serve(repositories_in(Path(sys.argv[1]))) as served:
        print(served.address, flush=True)
        threading.Event().wait()
