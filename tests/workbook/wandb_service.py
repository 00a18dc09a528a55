"""A stand-in for the W&B server on loopback: it answers what `wandb sync` asks and keeps what it is told."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Told:
    """What arrived: runs (id -> name, project, jobType), history (id -> lines), artifacts (name -> type), files."""

    address: str = ""
    runs: dict = field(default_factory=dict)
    history: dict = field(default_factory=dict)
    artifacts: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)

    def sync(self, *folders: Path) -> subprocess.CompletedProcess:
        """`wandb sync` of these offline runs, as a reader would call it."""
        key = {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": "x" * 40, "WANDB_ERROR_REPORTING": "false"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | key
        command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def answer(self, name: str, values: dict) -> dict:
        """The server's answer to a query or mutation of the GraphQL interface."""
        if name == "UpsertBucket":
            given = {key: values[key] for key in ("displayName", "project", "jobType") if values.get(key)}
            self.runs.setdefault(values["name"], {}).update(given)
            return {"upsertBucket": {"bucket": self.bucket(values["name"]), "inserted": True}}
        if name == "RunResumeStatus":
            known = values["name"] in self.history
            return {"model": {"id": "1", "bucket": self.bucket(values["name"]), **OWNER} if known else None}
        if name == "CreateRunFiles":
            urls = [{"name": file, "uploadUrl": f"{self.address}/upload/{file}"} for file in values["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": urls}}
        if name == "CreateArtifact":
            asked = values["input"]
            self.artifacts[asked["artifactCollectionName"]] = asked["artifactTypeName"]
            sequence = {"id": "1", "latestArtifact": {"id": "1", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "1", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {}

    def bucket(self, run: str) -> dict:
        lines = self.history.get(run, [])
        counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "summaryMetrics": "{}", "config": "{}"}
        named = {"id": "1", "name": run, "displayName": run, "tags": [], "notes": "", "wandbConfig": '{"t": 1}'}
        return named | counts | tails | {"project": {"id": "1", "name": "agent-forge-v2", **OWNER}}


OWNER = {"entity": {"id": "1", "name": "me"}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked, told = self.body(), self.server.told
        if self.path == "/graphql":
            request = json.loads(asked)
            name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
            return self.reply({"data": told.answer(name, request.get("variables") or {})})
        if self.path.endswith("/file_stream"):
            history = json.loads(asked).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            kept = told.history.setdefault(self.path.split("/")[-2], [])
            kept[history["offset"] :] = kept[history["offset"] + len(history["content"]) :]
            kept[history["offset"] : history["offset"]] = history["content"]
        return self.reply({})

    def do_PUT(self):
        self.server.told.files[self.path.removeprefix("/upload/")] = self.body()
        self.reply({})

    def do_GET(self):
        self.reply({})

    def body(self) -> bytes:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def reply(self, answer: dict) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@contextmanager
def wandb_server() -> Iterator[Told]:
    """The stand-in, running while the block does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.told = Told(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.told
    finally:
        server.shutdown()
        server.server_close()
