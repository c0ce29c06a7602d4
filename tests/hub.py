"""A stand-in for the hub: enough of its protocol to upload to and download from."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

#: What the hub keeps as large files.
LARGE = (".pth", ".safetensors", ".zip")


class Hub:
    """Repositories in memory: revision by revision, files by name.

    Attributes:
        url: Address, for ``HF_ENDPOINT``.
        revisions: Of each repository, the files of each commit.
        requests: What was asked for: method and path.
    """

    def __init__(self, url: str):
        self.url = url
        self.revisions: dict[str, list[dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of the latest commit."""
        return self.revisions[repo][-1]

    def commit(self, repo: str, index: int) -> str:
        """The name of a commit."""
        return hashlib.sha1(f"{repo} {index}".encode()).hexdigest()

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Name and files of a revision; KeyError if there is none."""
        commits = self.revisions[repo]
        for index in reversed(range(len(commits))):
            name = self.commit(repo, index)
            if revision in ("main", name):
                return name, commits[index]
        raise KeyError(revision)


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """A hub that runs as long as the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, value: object, code: int = 200, **headers: str) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(code)
            for key, text in headers.items():
                self.send_header(key.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, what: str) -> None:
            self.answer({"error": what}, 404, X_Error_Code=what)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_PUT(self) -> None:
            oid = self.path.rsplit("/", 1)[1]
            content = self.body()
            if hashlib.sha256(content).hexdigest() != oid:
                return self.missing("Checksum")
            server.objects[oid] = content
            self.answer({})

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.body()
            server.requests.append(("POST", path))
            if path == "/api/repos/create":
                wanted = json.loads(body)
                name = "/".join(filter(None, [wanted.get("organization")]))
                name = f"{name}/{wanted['name']}" if name else wanted["name"]
                known = name in server.revisions
                server.revisions.setdefault(name, [{}])
                url = {"url": f"{server.url}/{name}", "id": name}
                return self.answer(url, 409 if known else 200)
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": (
                            "lfs" if file["path"].endswith(LARGE) else "regular"
                        ),
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            if re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
                objects = [
                    {
                        "oid": o["oid"],
                        "size": o["size"],
                        "actions": {"upload": {"href": f"{server.url}/lfs/{o['oid']}"}},
                    }
                    for o in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                return self.make_commit(match[1], body)
            self.missing("EntryNotFound")

        def make_commit(self, repo: str, body: bytes) -> None:
            files = dict(server.files(repo))
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = server.objects[value["oid"]]
                elif entry["key"] == "deletedFile":
                    files.pop(value["path"], None)
            server.revisions[repo].append(files)
            name = server.commit(repo, len(server.revisions[repo]) - 1)
            self.answer(
                {
                    "success": True,
                    "commitOid": name,
                    "commitUrl": f"{server.url}/{repo}/commit/{name}",
                }
            )

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            server.requests.append((self.command, path))
            try:
                if match := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
                    return self.info(match[1], match[2])
                if match := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+).*", path):
                    return self.tree(match[1], match[2])
                if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
                    return self.info(match[1], "main")
                if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
                    return self.file(*match.groups())
            except KeyError:
                return self.missing("RepoNotFound")
            self.missing("EntryNotFound")

        do_HEAD = do_GET

        def info(self, repo: str, revision: str) -> None:
            name, files = server.at(repo, revision)
            siblings = [{"rfilename": file} for file in files]
            self.answer(
                {"id": repo, "modelId": repo, "sha": name, "siblings": siblings}
            )

        def tree(self, repo: str, revision: str) -> None:
            name, files = server.at(repo, revision)
            entries = []
            for file, content in files.items():
                oid = hashlib.sha1(content).hexdigest()
                entry = {"type": "file", "path": file, "oid": oid, "size": len(content)}
                if file.endswith(LARGE):
                    sha = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {
                        "oid": sha,
                        "size": len(content),
                        "pointerSize": 134,
                    }
                entries.append(entry)
            self.answer(entries, X_Repo_Commit=name)

        def file(self, repo: str, revision: str, file: str) -> None:
            name, files = server.at(repo, revision)
            if file not in files:
                return self.missing("EntryNotFound")
            etag = hashlib.sha256(files[file]).hexdigest()
            self.answer(files[file], X_Repo_Commit=name, ETag=f'"{etag}"')

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Hub(f"http://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
