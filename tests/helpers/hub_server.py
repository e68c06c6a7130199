"""A stand-in for the Hugging Face Hub on the loopback interface: models and data sets, branches, commits, faults.

    with hub_server.Hub() as hub:
        hub.add("org/model", {"config.json": b"{}"})
        hub.use(monkeypatch, tmp_path)          # this process talks to it
        subprocess.run(..., env=hub.environment(tmp_path))  # or another process does

The server answers the requests with which huggingface_hub and `datasets` read a repository, create it, and push files
to it, large ones over Git LFS.
"""

import base64
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import re
import socket
import threading
import urllib.parse
from collections.abc import Mapping

import huggingface_hub
from huggingface_hub import constants

TOKEN = "hf_onlyForTheStandIn"
LARGE = (".safetensors", ".bin", ".parquet", ".arrow", ".gz", ".zip")  # kept in Git LFS
NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
KIND = r"(?P<kind>model|dataset)s"


@dataclasses.dataclass
class Repo:
    """A repository. branches: the newest commit of each branch. commits: the files of each commit.

    A commit's name is a hash of its files and of the number of earlier commits.
    """

    private: bool = False
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, changes: Mapping[str, bytes]) -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        self.branches[branch] = digest.hexdigest()
        self.commits[digest.hexdigest()] = files
        return digest.hexdigest()

    def at(self, revision: str) -> str | None:
        """The commit that a revision (a branch or a commit) names; None if there is none."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclasses.dataclass
class Fault:
    """What happens to the next `times` requests that match `pattern`, a regular expression for "METHOD /path".

    status: the HTTP status of the answer. With 0, the connection is cut in the middle of the request's body. If the
    request has no body, it is cut in the middle of the answer.
    """

    pattern: str
    status: int
    times: int
    headers: dict[str, str]


class Hub:
    """The server. It runs until its `with` block ends.

    requests: every "METHOD /path" so far. tokens: the namespace that each valid token may write to.
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens = {TOKEN: "org"}
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends all connections, and refuses later ones."""
        self.server.shutdown()
        self.server.server_close()
        huggingface_hub.close_session()

    def add(self, name: str, files: Mapping[str, bytes], kind: str = "model", branch: str = "main", **about) -> str:
        """Commits these files, and creates the repository if it does not exist. Returns the commit."""
        return self.repos.setdefault((kind, name), Repo(**about)).commit(branch, files)

    def add_folder(self, name: str, folder: pathlib.Path, **more) -> str:
        return self.add(name, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}, **more)

    def fail(self, pattern: str, status: int, times: int = 1, **headers: str):
        """Makes the next requests fail; see `Fault`."""
        self.faults.append(Fault(pattern, status, times, headers))

    def asked(self, pattern: str) -> list[str]:
        """The requests so far that match a regular expression."""
        return [request for request in self.requests if re.search(pattern, request)]

    def use(self, monkeypatch, folder: pathlib.Path, token: str | None = None):
        """Makes huggingface_hub in this process use this server, and a cache in `folder`."""
        changes = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_TOKEN_PATH": str(folder / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        }
        for name, value in changes.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        huggingface_hub.close_session()  # ends connections to another server

    def environment(self, folder: pathlib.Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process that uses this server, and a cache in `folder`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
        return {**kept, **own, **({"HF_TOKEN": token} if token else {})}


def blob_id(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # the client has disconnected


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection. Each method named do_... answers one kind of request."""

    hub: Hub
    protocol_version = "HTTP/1.1"  # sends Content-Length, so that a client notices a cut answer

    ROUTES = (
        ("GET", r"/api/whoami-v2", "who"),
        ("POST", r"/api/validate-yaml", "card_is_valid"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", rf"/api/{KIND}/{NAME}/revision/(?P<revision>[^/]+)", "info"),
        ("GET", rf"/api/{KIND}/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
        ("POST", rf"/api/{KIND}/{NAME}/paths-info/(?P<revision>[^/]+)", "paths"),
        ("POST", rf"/api/{KIND}/{NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/{KIND}/{NAME}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/{KIND}/{NAME}/branch/(?P<revision>[^/]+)", "branch"),
        ("GET", rf"/api/{KIND}/{NAME}", "info"),
        ("POST", rf"/(?:{KIND}/)?{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<name>[0-9a-f]{64})", "lfs_put"),
        ("(?:GET|HEAD)", rf"/(?:{KIND}/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, format, *args):
        pass

    def answer(self):
        parts = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        request = f"{self.command} {parts.path}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = next((f for f in self.hub.faults if f.times and re.search(f.pattern, request)), None)
            if fault:
                fault.times -= 1
        self.cut = fault is not None and fault.status == 0
        if self.cut and length:
            self.rfile.read(length // 2)
            self.hang_up()
            return
        self.body = self.rfile.read(length)
        self.query = dict(urllib.parse.parse_qsl(parts.query))
        if fault and fault.status:
            self.refuse(fault.status, "the stand-in was asked to fail", **fault.headers)
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.tokens.get(given)
        if given and self.user is None:
            self.refuse(401, "Invalid credentials in Authorization header")
            return
        for method, pattern, name in self.ROUTES:
            if re.fullmatch(method, self.command) and (match := re.fullmatch(pattern, parts.path)):
                found = {key: urllib.parse.unquote(value) for key, value in match.groupdict().items() if value}
                with self.hub.lock:
                    getattr(self, f"do_{name}")(**found)
                return
        self.refuse(404, f"the stand-in has no {request}")

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def hang_up(self):
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def send(self, content: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
        if self.cut:
            self.hang_up()

    def send_json(self, value, status: int = 200, **headers: str):
        self.send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def refuse(self, status: int, message: str, code: str = "", **headers: str):
        named = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        self.send_json({"error": message}, status, **named, **headers)

    def repo(self, kind: str, name: str) -> Repo | None:
        """The repository. If it does not exist, or the caller may not see it, refuses the request and returns None."""
        repo = self.hub.repos.get((kind, name))
        if repo is not None and (not repo.private or self.user):
            return repo
        self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound" if self.user else "")
        return None

    def files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision and its files; None if the request was refused."""
        if (repo := self.repo(kind, name)) is None:
            return None
        if (commit := repo.at(revision)) is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return commit, repo.commits[commit]

    def may_write(self, name: str) -> bool:
        """Whether the caller owns the repository's namespace. If not, refuses the request."""
        if self.user and name.split("/")[0] == self.user:
            return True
        self.refuse(403 if self.user else 401, "You don't have the rights to write to this repository")
        return False

    def do_who(self):
        if not self.user:
            return self.refuse(401, "Invalid username or password.")
        return self.send_json({"type": "user", "name": self.user, "auth": {"type": "access_token"}})

    def do_card_is_valid(self):
        self.send_json({"errors": [], "warnings": []})

    def do_create(self):
        asked = json.loads(self.body)
        kind, name = asked.get("type", "model"), f"{asked.get('organization') or self.user}/{asked['name']}"
        if not self.may_write(name):
            return None
        url = f"{self.hub.url}/{name}"
        if (kind, name) in self.hub.repos:
            return self.send_json({"url": url, "error": "You already created this repo"}, 409)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, kind, private=private)
        return self.send_json({"url": url, "name": name})

    def do_info(self, kind: str, name: str, revision: str = "main"):
        if (found := self.files(kind, name, revision)) is None:
            return
        commit, files = found
        names = [{"rfilename": path} for path in sorted(files)]
        private = self.hub.repos[kind, name].private
        about = {"_id": "0", "id": name, "sha": commit, "private": private, "siblings": names, "tags": []}
        self.send_json({**about, "disabled": False, "gated": False, "downloads": 0, "likes": 0})

    def entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        if is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def do_tree(self, kind: str, name: str, revision: str, path: str = ""):
        if (found := self.files(kind, name, revision)) is None:
            return
        below, entries, folders = f"{path.strip('/')}/".lstrip("/"), [], set()
        for file, content in sorted(found[1].items()):
            rest = file.removeprefix(below)
            if not file.startswith(below):
                continue
            if "/" in rest and self.query.get("recursive", "").lower() not in ("true", "1"):
                folders.add(below + rest.split("/")[0])
            else:
                entries.append(self.entry(file, content))
        folded = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        if path and not entries and not folded:
            self.refuse(404, f"{path} does not exist", "EntryNotFound")
            return
        self.send_json(folded + entries)

    def do_paths(self, kind: str, name: str, revision: str):
        if (found := self.files(kind, name, revision)) is None:
            return
        text = self.body.decode()
        asked = json.loads(text) if text.startswith("{") else urllib.parse.parse_qs(text)
        files, entries = found[1], []
        for path in asked["paths"]:
            if path in files:
                entries.append(self.entry(path, files[path]))
            elif any(file.startswith(f"{path}/") for file in files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.send_json(entries)

    def do_preupload(self, kind: str, name: str, revision: str):
        if not self.may_write(name) or (found := self.files(kind, name, revision)) is None:
            return
        modes = []
        for file in json.loads(self.body)["files"]:
            mode = {"path": file["path"], "uploadMode": "lfs" if is_large(file["path"]) else "regular"}
            if (there := found[1].get(file["path"])) is not None:
                mode["oid"] = hashlib.sha256(there).hexdigest() if is_large(file["path"]) else blob_id(there)
            modes.append({**mode, "shouldIgnore": False})
        self.send_json({"files": modes})

    def do_lfs_batch(self, name: str, kind: str = "model"):
        if not self.may_write(name):
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            if asked["oid"] not in self.hub.large:
                asked["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}}
            objects.append(asked)
        self.send_json({"transfer": "basic", "objects": objects})

    def do_lfs_put(self, name: str):
        if hashlib.sha256(self.body).hexdigest() != name:
            return self.refuse(400, "the content does not have this hash")
        self.hub.large[name] = self.body
        return self.send(b"")

    def do_commit(self, kind: str, name: str, revision: str):
        if not self.may_write(name) or self.files(kind, name, revision) is None:
            return None
        changes = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                changes[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                if entry["value"]["oid"] not in self.hub.large:
                    return self.refuse(400, f"{entry['value']['path']} was not uploaded")
                changes[entry["value"]["path"]] = self.hub.large[entry["value"]["oid"]]
        commit = self.hub.repos[kind, name].commit(revision, changes)
        return self.send_json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"}
        )

    def do_branch(self, kind: str, name: str, revision: str):
        if not self.may_write(name) or (repo := self.repo(kind, name)) is None:
            return None
        if revision in repo.branches:
            return self.refuse(409, "Reference already exists")
        repo.branches[revision] = repo.branches["main"]
        return self.send_json({})

    def do_resolve(self, name: str, revision: str, path: str, kind: str = "model"):
        if (found := self.files(kind, name, revision)) is None:
            return None
        commit, files = found
        if path not in files:
            return self.refuse(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit)
        content, size = files[path], str(len(files[path]))
        etag = hashlib.sha256(content).hexdigest() if is_large(path) else blob_id(content)
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if is_large(path):
            headers |= {"X_Linked_ETag": f'"{etag}"', "X_Linked_Size": size}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), int(match[2] or len(content) - 1)
            part = content[start : end + 1]
            return self.send(part, 206, Content_Range=f"bytes {start}-{start + len(part) - 1}/{size}", **headers)
        return self.send(content, **headers)
