"""A stand-in for the API of a Kubernetes cluster: it stores objects, and tests say what pods do.

It is no cluster: nothing runs, nothing is scheduled. Its answers have the forms that the reference of
the API shows. A Job makes its pods at once unless it is suspended, and takes them along when deleted.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: "{address}"}}}}]
users: [{{name: me, user: {{token: a-token}}}}]
"""
NAMED = ("secrets", "jobs", "jobsets", "pods", "nodes")


class Standin:
    """The objects of one cluster by kind and name."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Json]] = {kind: {} for kind in NAMED}
        self.calls: list[str] = []
        self.logs: dict[str, bytes] = {}
        self.status = 0
        self.address = ""

    def add_node(self, name: str, *, is_ready: bool = True) -> None:
        """Add a node, or say how it is now."""
        self.objects["nodes"][name] = {
            "metadata": {"name": name, "labels": {}},
            "spec": {},
            "status": {
                "allocatable": {"cpu": "4", "memory": "8Gi"},
                "conditions": [{"type": "Ready", "status": "True" if is_ready else "Unknown"}],
                "nodeInfo": {"bootID": f"boot-{name}"},
            },
        }

    def pod(self, step: str) -> Json:
        """Return the pod of a step."""
        pods = self.objects["pods"].values()
        return next(pod for pod in pods if pod["metadata"]["labels"]["moulin-step"] == step)

    def runs(self, step: str) -> None:
        """Let a pod run."""
        started = {"startedAt": "2026-11-22T09:00:00Z"}
        self.pod(step)["status"] = _status("Running", {"running": started})

    def ends(self, step: str, code: int) -> None:
        """Let a pod end by itself."""
        times = {"startedAt": "2026-11-22T09:00:00Z", "finishedAt": "2026-11-22T09:00:05Z"}
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", **times}
        phase = "Succeeded" if code == 0 else "Failed"
        self.pod(step)["status"] = _status(phase, {"terminated": ended})

    def create(self, kind: str, body: Json) -> bool:
        """Store an object; return whether its name was free."""
        name = body["metadata"]["name"]
        if name in self.objects[kind]:
            return False
        self.objects[kind][name] = body
        if kind == "jobs" and not body["spec"].get("suspend"):
            self._make_pod(name, body["spec"])
        if kind == "jobsets" and not body["spec"].get("suspend"):
            for job in body["spec"]["replicatedJobs"]:
                self._make_pod(f"{name}-{job['name']}-0", job["template"]["spec"])
        return True

    def admit(self, jobset: str) -> None:
        """Let a suspended JobSet go, as Kueue does once its queue has room."""
        body = self.objects["jobsets"].pop(jobset)
        del body["spec"]["suspend"]
        self.create("jobsets", body)

    def delete(self, kind: str, name: str) -> bool:
        """Remove an object and what belongs to it; return whether it was there."""
        if kind in ("jobs", "jobsets") and name in self.objects[kind]:
            for pod in [p for p in self.objects["pods"] if p.startswith(f"{name}-")]:
                del self.objects["pods"][pod]
        return self.objects[kind].pop(name, None) is not None

    def listed(self, kind: str, selector: str) -> list[Json]:
        """Return the objects that a label selector of equalities chooses."""
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        return [
            found
            for found in self.objects[kind].values()
            if wanted.items() <= found["metadata"].get("labels", {}).items()
        ]

    def _make_pod(self, job: str, spec: Json) -> None:
        template = spec["template"]
        terms = template["spec"]["affinity"]["nodeAffinity"]
        [term] = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        name = f"{job}-0-abcde"
        self.objects["pods"][name] = {
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": {**template["spec"], "nodeName": term["matchFields"][0]["values"][0]},
            "status": {"phase": "Pending"},
        }


def _status(phase: str, state: Json) -> Json:
    return {"phase": phase, "containerStatuses": [{"name": "task", "state": state}]}


class Handler(BaseHTTPRequestHandler):
    """The paths that the engine uses."""

    protocol_version = "HTTP/1.1"
    # Else each answer waits 40 ms for the word that its head arrived.
    disable_nagle_algorithm = True
    standin: Standin

    def do_GET(self) -> None:
        kind, name, rest, query = self._target()
        if rest == "log":
            data = self.standin.logs.get(name, b"")[: int(query["limitBytes"][0])]
            self._send(200, data)
            return
        found = self.standin.listed(kind, query.get("labelSelector", [""])[0])
        if "PartialObjectMetadataList" in self.headers["Accept"]:
            found = [{"metadata": one["metadata"]} for one in found]
        self._send(200, {"items": found})

    def do_POST(self) -> None:
        kind, _, _, _ = self._target()
        body = self._body()
        made = self.standin.create(kind, body)
        self._send(201 if made else 409, body if made else {"message": "already exists"})

    def do_PATCH(self) -> None:
        kind, name, _, _ = self._target()
        found, patch = self.standin.objects[kind].get(name), self._body()
        if found is not None:
            notes = found["metadata"].setdefault("annotations", {})
            notes.update(patch["metadata"]["annotations"])
        self._send(200 if found else 404, found or {"message": "not found"})

    def do_DELETE(self) -> None:
        kind, name, _, query = self._target()
        self._body()
        if name:
            is_there = self.standin.delete(kind, name)
        else:
            chosen = self.standin.listed(kind, query["labelSelector"][0])
            is_there = all(self.standin.delete(kind, one["metadata"]["name"]) for one in chosen)
        self._send(200 if is_there else 404, {"message": "deleted" if is_there else "not found"})

    def _target(self) -> tuple[str, str, str, dict[str, list[str]]]:
        """Return kind, name, what follows and the query."""
        parts = urlsplit(self.path)
        words = parts.path.strip("/").split("/")
        index = next(i for i, word in enumerate(words) if word in NAMED)
        kind, name, rest = [*words[index:], "", ""][:3]
        self.standin.calls.append(f"{self.command} {kind}")
        return kind, name, rest, parse_qs(parts.query)

    def _body(self) -> Json:
        return dict(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}"))

    def _send(self, status: int, body: Json | bytes) -> None:
        status = self.standin.status or status
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of calls."""


@contextmanager
def standin() -> Iterator[Standin]:
    """Serve an empty cluster on a free port."""
    made = Standin()
    handler = type("Bound", (Handler,), {"standin": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    made.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
