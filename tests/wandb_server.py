"""A stand-in for the server of wandb, as far as its client and its agent need one: GraphQL, and streams of history."""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import wandb

ENVIRONMENT = {"WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


class Server(ThreadingHTTPServer):
    """What has arrived: configurations, histories and summaries by the id of a run, and the names of all files."""

    daemon_threads = True

    def __init__(self, sweep: str = "", commands: list[dict[str, Any]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sweep, self.commands = sweep, commands or []
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.summary: dict[str, dict[str, Any]] = {}
        self.files: set[str] = set()
        self.artifacts: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "WANDB_BASE_URL": self.url}

    def answer(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation; null for what a client can do without."""
        match operation:
            case "Viewer":
                return {"viewer": {"id": "v", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []}}}
            case "UpsertBucket":
                return {"upsertBucket": self.upsert(values)}
            case "CreateRunFiles":
                self.files |= set(values["files"])
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
            case "SweepWithRuns":
                node = {"id": "s", "name": "s", "config": self.sweep, "state": "RUNNING", "runs": {"edges": []}}
                return {"project": {"sweep": node}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "a"}}}
            case "Heartbeat":
                busy = any(json.loads(values["runState"]).values())
                todo = [] if busy else [self.commands.pop(0)] if self.commands else [{"type": "exit"}]
                return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(todo)}}
            case "CreateArtifact":  # as if it had all of its files already
                self.artifacts.append(values["input"]["artifactCollectionName"])
                found = {"id": "x", "state": "COMMITTED", "artifactSequence": {"id": "q", "latestArtifact": None}}
                return {"createArtifact": {"artifact": found}}
        return {"model": None, "project": None}

    def upsert(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["name"]
        inserted = name not in self.runs
        told = {key: value for key, value in values.items() if value is not None}
        if "config" in told:
            told["config"] = {key: node["value"] for key, node in json.loads(told["config"]).items()}
        run = self.runs.setdefault(name, {})
        run |= told
        project = {"id": "p", "name": values.get("project") or "p", "entity": {"id": "e", "name": "e"}}
        bucket = {"id": name, "name": name, "displayName": run.get("displayName"), "config": "{}", "project": project}
        return {"bucket": {**bucket, "sweepName": run.get("sweep"), "historyLineCount": 0}, "inserted": inserted}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            rows = [json.loads(line) for line in part["content"] if line.startswith("{")]
            if name == "wandb-history.jsonl":
                self.history[run] += rows
            elif name == "wandb-summary.json":
                self.summary[run] = rows[-1]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        if self.path == "/graphql":
            operation = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            found = self.server.answer(operation[1] if operation else "", sent.get("variables") or {})
            self.reply({"data": found})
            return
        if "/file_stream" in self.path:
            self.server.stream(self.path.split("/")[4], sent)
        self.reply({})

    do_PUT = do_GET = lambda self: self.reply({})

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server while it is asked. wandb of this process forgets the one before."""
    wandb.teardown()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        wandb.teardown()
        server.shutdown()
        server.server_close()
