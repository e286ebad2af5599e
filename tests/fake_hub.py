"""A Hugging Face Hub on this machine, as far as its client asks one: repositories of models.

It speaks the client's protocol over HTTP, so what is tested is the client that users have. Commits
are kept as {name: bytes}; files of weights travel as Git LFS objects, others inside the commit.
"""

import base64
import contextlib
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_of_these_tests"


class FakeHub:
    """Its repositories, what was asked of it, and ways to make it misbehave."""

    def __init__(self):
        self.repos, self.objects, self.asked = {}, {}, []
        self.down = False
        """Every request gets a 503."""
        self.sizes = {}
        """{name: bytes} to claim of files instead of the truth."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("On", (Handler,), {"hub": self}))
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, repo, files, branch="main", private=False):
        """Makes a commit of exactly these files; returns its hash."""
        made = self.repos.setdefault(repo, {"private": private, "refs": {}, "commits": {}})
        content = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
        name = f"{repo}{branch}{content}{len(made['commits'])}"
        commit = hashlib.sha1(name.encode()).hexdigest()
        made["commits"][commit] = dict(files)
        made["refs"][branch] = commit
        return commit

    def upload(self, repo, folder, **how):
        """Makes a commit of the files in a folder."""
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return self.commit(repo, files, **how)

    def files(self, repo, revision="main"):
        """{name: bytes} of a branch or commit."""
        made = self.repos[repo]
        return made["commits"][made["refs"].get(revision, revision)]

    def fetched(self):
        """Names of the files that were downloaded, since ``asked`` was last cleared."""
        return sorted(
            match[1]
            for method, path in self.asked
            if method == "GET" and (match := re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.*)", path))
        )


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code):
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if self.hub.down:
            return self.refuse(503, "Unavailable")
        for method, pattern, action in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return action(self, *match.groups())
        return self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def allowed(self, repo=None):
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return known or (repo is not None and not self.hub.repos[repo]["private"])

    def find(self, repo, revision):
        """The hash and files of a commit; None if that was refused."""
        if repo not in self.hub.repos or not self.allowed(repo):
            self.refuse(401, "RepoNotFound")
            return None
        made = self.hub.repos[repo]
        commit = made["refs"].get(revision or "main", revision)
        if commit not in made["commits"]:
            self.refuse(404, "RevisionNotFound")
            return None
        return commit, made["commits"][commit]

    def size(self, name, data):
        return self.hub.sizes.get(name, len(data))

    def info(self, repo, revision=None):
        if found := self.find(repo, revision):
            commit, files = found
            siblings = [{"rfilename": n, "size": self.size(n, d)} for n, d in files.items()]
            private = self.hub.repos[repo]["private"]
            self.answer(200, {"id": repo, "sha": commit, "private": private, "siblings": siblings})

    def tree(self, repo, revision):
        if found := self.find(repo, revision):
            entries = []
            for name, data in found[1].items():
                entry = {"type": "file", "path": name, "size": self.size(name, data)}
                entry["oid"] = hashlib.sha1(data).hexdigest()
                if is_large(name):
                    oid = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
                entries.append(entry)
            self.answer(200, entries)

    def resolve(self, repo, revision, name):
        if found := self.find(repo, revision):
            commit, files = found
            if name not in files:
                return self.refuse(404, "EntryNotFound")
            data = files[name]
            kind = hashlib.sha256 if is_large(name) else hashlib.sha1
            self.answer(200, data, ETag=f'"{kind(data).hexdigest()}"', X_Repo_Commit=commit)

    def create(self):
        if not self.allowed():
            return self.refuse(401, "Unauthorized")
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        private = asked.get("private", asked.get("visibility") == "private")
        if repo in self.hub.repos:
            return self.answer(409, {"url": f"{self.hub.url}/{repo}"})
        self.hub.commit(repo, {".gitattributes": b""}, private=private)
        self.answer(200, {"url": f"{self.hub.url}/{repo}"})

    def branch(self, repo, name):
        refs = self.hub.repos[repo]["refs"]
        if name in refs:
            return self.refuse(409, "Conflict")
        refs[name] = refs["main"]
        self.answer(200, {})

    def validate(self):
        assert json.loads(self.body)["content"].startswith("---\n")
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        if not self.allowed():
            return self.refuse(403, "Forbidden")
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": n, "uploadMode": modes[is_large(n)], "shouldIgnore": False} for n in names
        ]
        self.answer(200, {"files": files})

    def batch(self, repo):
        objects = json.loads(self.body)["objects"]
        for one in objects:
            if one["oid"] not in self.hub.objects:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.answer(200)

    def commit(self, repo, revision):
        files = dict(self.hub.files(repo, revision))
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                self.hub.repos[repo]["message"] = value["summary"]
        commit = self.hub.commit(repo, files, branch=revision)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self.answer(200, {"commitUrl": url, "commitOid": commit, "hookOutput": ""})


def is_large(name):
    return name.endswith(".safetensors")


REPO = "([^/]+/[^/]+)"
ROUTES = (
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/api/models/{REPO}/revision/(.+)", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/(.+)", Handler.tree),
    ("HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET", f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", f"/api/models/{REPO}/branch/(.+)", Handler.branch),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(.+)", Handler.store),
    ("POST", f"/api/models/{REPO}/commit/(.+)", Handler.commit),
)


@contextlib.contextmanager
def fake_hub(cache, monkeypatch):
    """Runs a Hub that the client takes for the real one; its cache is a folder."""
    hub = FakeHub()
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(cache / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
