"""Ray's Jobs REST API over plain HTTP, as far as one long job needs it; no Ray is imported.

Reference: docs.ray.io, "Ray Jobs REST API"; the addresses under `/api/packages` are what its own
client uploads a working directory to.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from moulin.domain.errors import EngineUnavailable
from moulin.engines.ray.package import Package

if TYPE_CHECKING:
    import httpx

ENDED: Final = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
CONNECT_S: Final = 1.0
READ_S: Final = 8.0
STATUS_ABSENT: Final = 404
STATUS_FORBIDDEN: Final = frozenset({401, 403})


class RayHttp:
    """HTTP to one server of a cluster, with the cluster's token, which may change on disk."""

    def __init__(self, address: str, token_file: Path) -> None:
        import httpx  # only where a pool has a cluster: it is heavy

        self.address = address.rstrip("/")
        self._token_file = token_file
        timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
        self._client = httpx.Client(base_url=self.address, timeout=timeout, trust_env=False)

    def send(self, method: str, path: str, **content: Any) -> "httpx.Response":
        """Return the answer, whatever its status but refused credentials.

        A connection that is closed instead of an answer is opened once more: a server that ended, or
        let go of an idle one, says nothing else, and all that is asked of it may be asked twice.

        Raises `EngineUnavailable` when there is none or the token is wrong: no task's fault.
        """
        import httpx

        try:
            token = self._token_file.read_text(encoding="ascii").strip()
            headers = {"Authorization": f"Bearer {token}"}
            try:
                answer = self._client.request(method, path, headers=headers, **content)
            except httpx.RemoteProtocolError:
                answer = self._client.request(method, path, headers=headers, **content)
        except OSError as cause:
            raise EngineUnavailable(
                f"read the token of {self.address} from {self._token_file}: {cause.strerror}",
                hint="copy it from the head of the cluster, or name another `token_file`",
            ) from cause
        except httpx.HTTPError as cause:
            raise EngineUnavailable(f"ask {self.address}: {cause!r}") from cause
        if answer.status_code in STATUS_FORBIDDEN:
            raise EngineUnavailable(
                f"ask {self.address}: it does not take the token in {self._token_file}",
                hint="copy the token from the head of the cluster again",
            )
        return answer

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Jobs:
    """Jobs of a cluster."""

    def __init__(self, http: RayHttp) -> None:
        self.http = http

    def find(self, job: str) -> dict[str, Any] | None:
        """Return what the cluster knows of a job, None when it has none of that name."""
        answer = self.http.send("GET", f"/api/jobs/{job}")
        if answer.status_code == STATUS_ABSENT:
            return None
        found: dict[str, Any] = _checked(answer).json()
        return found

    def names(self, prefix: str) -> tuple[str, ...]:
        """Return the names of running jobs that begin with `prefix`."""
        listed = _checked(self.http.send("GET", "/api/jobs/")).json()
        names = (job["submission_id"] for job in listed if job["status"] not in ENDED)
        return tuple(sorted(name for name in names if name and name.startswith(prefix)))

    def submit(self, job: str, command: str, package: Package) -> None:
        """Start a job once; one that is there already is left as it is."""
        place = f"/api/packages/gcs/{package.name}"
        if self.http.send("GET", place).status_code == STATUS_ABSENT:  # asking also keeps it
            _checked(self.http.send("PUT", place, content=package.data))
        asked = {
            "submission_id": job,
            "entrypoint": command,
            "runtime_env": {"working_dir": f"gcs://{package.name}"},
            "metadata": {"started_by": "moulin"},
        }
        answer = self.http.send("POST", "/api/jobs/", json=asked)
        if answer.is_error and self.find(job) is None:
            _checked(answer)

    def stop(self, job: str) -> None:
        """Ask a job to end; nothing when there is none."""
        self.http.send("POST", f"/api/jobs/{job}/stop")

    def delete(self, job: str) -> None:
        """Remove the record of an ended job."""
        self.http.send("DELETE", f"/api/jobs/{job}")


def _checked(answer: "httpx.Response") -> "httpx.Response":
    if answer.is_error:
        last = answer.text.strip().splitlines()[-1:] or [""]
        raise EngineUnavailable(f"ask {answer.url}: {answer.status_code} {last[0][:300]}")
    return answer
