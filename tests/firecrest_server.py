"""A small server with the answers of FirecREST v2 as its documentation has them, before a real Slurm.

It stands in for FirecREST, which needs an identity provider and SSH to a cluster: what it is asked it does
by Slurm's own commands, as FirecREST does, and it checks what FirecREST would check.
"""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.slurm_cluster import PATH, SlurmCluster

TOKEN = "an-access-token"
SYSTEM = "mill"
_JOB = re.compile(rf"/v2/compute/{SYSTEM}/jobs(?:/([a-zA-Z0-9]+))?")
_FIELDS = "JobID,NumNodes,Name,NodeList,Partition,State,Reason,StartTime,EndTime,UserName,WorkDir"


def run(cluster: SlurmCluster, *words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": PATH, "SLURM_TIME_FORMAT": "%s", **cluster.environment}
    return subprocess.run(
        words, env=environment, input=script, capture_output=True, text=True, check=False
    )


def listed_jobs(cluster: SlurmCluster, *more: str) -> list[dict[str, Any]]:
    # It has both accounting and the queue to ask; here the queue lists ended jobs for a while.
    words = ",".join(f"{name}:|" for name in _FIELDS.split(","))
    said = run(cluster, "squeue", "--noheader", "--states=all", *more, f"--Format={words}").stdout
    rows = (line.split("|") for line in said.splitlines() if line.count("|") >= 11)
    return [job_model([value.strip() for value in row]) for row in rows]


def job_model(row: list[str]) -> dict[str, Any]:
    number, nodes, name, hosts, partition, state, reason, start, end, user, where = row[:11]
    return {
        "jobId": number,
        "name": name,
        "status": {"state": state, "stateReason": reason, "exitCode": 0, "interruptSignal": 0},
        "time": {"start": whole(start), "end": whole(end), "elapsed": None, "limit": None},
        "allocationNodes": int(nodes or 0),
        "cluster": SYSTEM,
        "nodes": hosts,
        "partition": partition,
        "user": user,
        "workingDirectory": where,
    }


def whole(written: str) -> int | None:
    return int(written) if written.isdigit() else None


class Handler(BaseHTTPRequestHandler):
    """One request, answered as the documentation says."""

    protocol_version = "HTTP/1.1"
    cluster: SlurmCluster

    def do_GET(self) -> None:
        found = _JOB.fullmatch(self.path)
        if not self._is_allowed():
            return
        if found is not None:
            more = [f"--jobs={found[1]}"] if found[1] else []
            jobs = listed_jobs(self.cluster, *more)
            if found[1] and not jobs:
                self._say(404, {"errorType": "error", "message": "Job not found."})
                return
            self._say(200, {"jobs": jobs})
        elif self.path == f"/v2/status/{SYSTEM}/nodes":
            self._say(200, {"nodes": self._nodes()})
        elif self.path == f"/v2/status/{SYSTEM}/partitions":
            said = run(self.cluster, "sinfo", "--noheader", "--format=%R").stdout.split()
            names = [{"name": name, "cpus": 8, "totalNodes": 4, "partition": "UP"} for name in said]
            self._say(200, {"partitions": names})
        else:
            self._say(404, {"errorType": "error", "message": "Not Found"})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size))
        if not self._is_allowed():
            return
        job = body.get("job")
        if not isinstance(job, dict) or not job.get("workingDirectory") or not job.get("script"):
            self._say(422, {"errorType": "validation", "message": "Field required"})
            return
        options = {
            "export": ",".join(["ALL", *(f"{k}={v}" for k, v in job.get("env", {}).items())]),
            "chdir": job["workingDirectory"],
            "partition": job.get("partition"),
            "reservation": job.get("reservation"),
            "account": job.get("account"),
            "job-name": job.get("name"),
            "output": job.get("standardOutput"),
            "constraint": job.get("constraints"),
        }
        words = [f"--{name}={value}" for name, value in options.items() if value]
        done = run(self.cluster, "sbatch", *words, script=job["script"])
        number = re.search("Submitted batch job ([0-9]+)", done.stdout)
        if done.returncode or number is None:
            words_said = f"exit_status:{done.returncode} std_err:{done.stderr}"
            message = f"Unexpected Slurm command response. {words_said}"
            self._say(500, {"errorType": "error", "message": message})
            return
        self._say(201, {"jobId": int(number[1])})

    def do_DELETE(self) -> None:
        found = _JOB.fullmatch(self.path)
        if not self._is_allowed():
            return
        if found is None or not found[1]:
            self._say(422, {"errorType": "validation", "message": "String should match pattern"})
            return
        done = run(self.cluster, "scancel", found[1])
        self._say(204 if done.returncode == 0 else 404, None)

    def log_message(self, format: str, *arguments: object) -> None:
        return

    def _nodes(self) -> list[dict[str, Any]]:
        said = run(
            self.cluster, "sinfo", "-a", "-N", "--noheader", "--format=%N|%c|%o|%T|%R"
        ).stdout
        rows = (line.split("|") for line in said.splitlines())
        return [
            {
                "name": name,
                "cpus": int(cpus),
                "address": address,
                "state": state.upper(),
                "partitions": [partition],
                "allocMemory": 0,
                "allocCpus": 0,
            }
            for name, cpus, address, state, partition in rows
        ]

    def _is_allowed(self) -> bool:
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not is_known:
            self._say(401, {"errorType": "error", "message": "Invalid token"})
        return is_known

    def _say(self, status: int, body: object) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def firecrest_before(cluster: SlurmCluster) -> Iterator[str]:
    """Serve a cluster for as long as the context lasts; the value is the address of its API."""
    handler = type("Bound", (Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v2"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
