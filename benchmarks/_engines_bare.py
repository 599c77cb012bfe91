"""The same program, started without Moulin: forked, by `sbatch`, by the Ray job client."""

import getpass
import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.ray_cluster import RayCluster, ray_directory
from tests.slurm_cluster import PATH, SlurmCluster

# One client is kept, as who has many jobs keeps it: importing Ray alone takes longer than a job.
JOB_CLIENT: Final = """
import json, sys
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

client = JobSubmissionClient(sys.argv[1])
print(json.dumps(ray.__version__), flush=True)
job = None
for line in sys.stdin:
    wanted = json.loads(line)
    if wanted is None:
        answer = job is None or client.get_job_status(job).is_terminal()
    else:
        job = answer = client.submit_job(entrypoint=wanted, entrypoint_num_cpus=1)
    print(json.dumps(answer), flush=True)
"""


def words(out: Path) -> tuple[str, ...]:
    """Return the program: it appends the time, in ns, to a file."""
    return ("sh", "-c", script(out))


def script(out: Path) -> str:
    """Return the program as a line of a shell."""
    return f"date +%s%N >> {out}"


def fork(out: Path) -> None:
    """Fork a process and wait for it."""
    subprocess.run(words(out), check=True)


class Sbatch:
    """A user of the cluster with a script for each job."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster
        self._environment = {"PATH": PATH, **cluster.environment}

    def start(self, out: Path) -> None:
        """Submit one job."""
        path = out.with_suffix(".sh")
        path.write_text(f"#!/bin/sh\n{script(out)}\n")
        self._submit(path)

    def hold(self, count: int) -> None:
        """Submit so many jobs, one after another."""
        path = self.cluster.folder / "true.sh"
        path.write_text("#!/bin/sh\ntrue\n")
        for _ in range(count):
            self._submit(path)

    def cancel(self) -> None:
        """Cancel all of this user's jobs."""
        self.cluster.run("scancel", "--quiet", f"--user={getpass.getuser()}")

    def _submit(self, path: Path) -> None:
        words = ("--parsable", "--output=/dev/null", "--partition=batch", "--time=10")
        size = ("--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=96M")
        subprocess.run(
            ["sbatch", *words, *size, str(path)],
            env=self._environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )


class JobClient:
    """Ray's own client in an interpreter that has Ray."""

    def __init__(self, cluster: RayCluster) -> None:
        self._process = subprocess.Popen(
            [str(ray_directory() / "bin" / "python"), "-c", JOB_CLIENT, cluster.pool.address],
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(cluster.folder),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(cluster.token_file),
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = str(self._read())

    def start(self, out: Path) -> None:
        """Submit one job."""
        self._ask(script(out))

    def is_idle(self) -> bool:
        """Say whether the last job ended."""
        return bool(self._ask(None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, wanted: str | None) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())
