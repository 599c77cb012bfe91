"""Requests to the control API of a Moulin, and what a Waldur resource is there.

It decides no order: the agent does. Every call is safe to repeat.
"""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
from waldur_site_agent.backend.exceptions import BackendError

TIMEOUT_S: Final = 30.0
# One a second while what ran there ends.
STOPPING_TRIES: Final = 60
CONNECT_WAITS_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
PAGE: Final = 1000
NEUR_PER_EUR: Final = 10**9
BYTES_PER_GB: Final = 10**9
USER_LABEL: Final = "waldur_user"
LIVE: Final = ("admitted", "placed", "running")
# A limit's name with the field of a project's quota, and what of that one unit of it is.
QUOTA: Final = {
    "cpu": ("cpu_milli", 1000),
    "ram_gb": ("memory_bytes", BYTES_PER_GB),
    "gpu": ("accelerators", 1),
    "jobs": ("workloads", 1),
}
BUDGET: Final = "eur"


class Connection:
    """One Moulin with an operator's key; `organisation` is whose projects the agent keeps."""

    def __init__(self, url: str, key: str, organisation: str, *, verify: str | bool = True) -> None:
        self.organisation = organisation
        self._pause = threading.Event()
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/api/v1",
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT_S,
            verify=verify,
        )

    def version(self) -> str:
        """Return the version of the Moulin, asking it now."""
        return str(self._call("GET", "/status")["version"])

    def project(self, name: str) -> dict[str, Any] | None:
        """Return a project as declared, None when there is none."""
        return next((each for each in self.projects() if each["name"] == name), None)

    def projects(self) -> tuple[dict[str, Any], ...]:
        """Return the organisation's projects that this bridge declared."""
        return tuple(
            item["body"]
            for item in self._call("GET", "/factory")["items"]
            if item["kind"] == "project"
            and item["organisation"] == self.organisation
            and item["managed_by"] == _file(item["name"])
        )

    def declare(self, name: str, limits: Mapping[str, int]) -> None:
        """Make a project of that name with these limits; what is not limited has none."""
        quota = {
            field: limits[limit] * unit for limit, (field, unit) in QUOTA.items() if limit in limits
        }
        budget_neur = limits[BUDGET] * NEUR_PER_EUR if BUDGET in limits else -1
        body = {
            "name": name,
            "organisation": self.organisation,
            "quota": {key: _wide(key, value) for key, value in quota.items()},
            "budget_neur": str(budget_neur),
        }
        self._apply(name, [{"kind": "project", "body": body}])

    def remove(self, name: str) -> None:
        """End what runs in a project, revoke its keys and forget it."""
        for user in self.users(name):
            self.revoke(name, user)
        self._call("POST", f"/projects/{name}/workloads/stop", {"states": list(LIVE)})
        for tries_left in reversed(range(STOPPING_TRIES)):
            try:
                self._apply(name, [])
            except BackendError:
                if not tries_left:
                    raise
                self._pause.wait(1.0)
            else:
                return

    def users(self, project: str) -> tuple[str, ...]:
        """Return whose keys of the project are valid."""
        return tuple(sorted({key["labels"][USER_LABEL] for key in self._keys(project)}))

    def issue(self, project: str, user: str) -> str:
        """Make a member's key for a user and return its secret, which is shown once."""
        body = {"name": _key_name(user), "role": "member", "labels": {USER_LABEL: user}}
        return str(self._call("POST", f"/projects/{project}/keys", body)["secret"])

    def revoke(self, project: str, user: str) -> None:
        """End every key of a user in a project."""
        for key in self._keys(project):
            if key["labels"][USER_LABEL] == user:
                self._call("DELETE", f"/keys/{key['id']}")

    def receipts(self, project: str, after: str) -> Iterator[dict[str, Any]]:
        """Yield receipts in order of issue, from behind one on."""
        while True:
            query = {"project": project, "cursor": after, "limit": PAGE}
            page = self._call("GET", "/receipts", query=query)
            yield from page["items"]
            after = page["next"]
            if not after:
                return

    def _keys(self, project: str) -> list[dict[str, Any]]:
        found = self._call("GET", f"/projects/{project}/keys")["items"]
        return [key for key in found if USER_LABEL in key["labels"] and not key["revoked_at"]]

    def _apply(self, name: str, objects: list[dict[str, Any]]) -> None:
        self._call("POST", "/factory/apply", {"managed_by": _file(name), "objects": objects})

    def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, Any] | None
    ) -> httpx.Response:
        """Send a request, again while nobody listens: a control plane is back within seconds."""
        for wait_s in (*CONNECT_WAITS_S, None):
            try:
                return self._client.request(method, path, json=body, params=query)
            except httpx.ConnectError:
                if wait_s is None:
                    raise
                self._pause.wait(wait_s)
        raise AssertionError("the last try returns or raises")

    def _call(
        self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            answer = self._send(method, path, body, query)
        except httpx.HTTPError as cause:
            raise BackendError(f"reach Moulin: {cause}") from cause
        if answer.is_success:
            return answer.json()
        try:
            problem = answer.json()
        except ValueError:
            problem = {}
        detail = problem.get("detail", answer.reason_phrase)
        raise BackendError(
            f"{method} {path}: {answer.status_code} {detail} {problem.get('hint', '')}"
        )


def read_key(settings: Mapping[str, Any]) -> str:
    """Return the operator's key: of a file, as `moulin up` writes one, or alone in one."""
    path = Path(settings["key_file"])
    text = path.read_text(encoding="utf-8").strip()
    if text.startswith("{"):
        import json  # noqa: PLC0415 - for one of two forms

        return str(json.loads(text)["operator_key"])
    return text


def limits_of(project: Mapping[str, Any]) -> dict[str, int]:
    """Return the limits that a project has, in units of the components."""
    found = {
        limit: int(project["quota"][field]) // unit
        for limit, (field, unit) in QUOTA.items()
        if int(project["quota"][field]) >= 0
    }
    budget_neur = int(project["budget_neur"])
    return {**found, BUDGET: budget_neur // NEUR_PER_EUR} if budget_neur >= 0 else found


def _wide(field: str, value: int) -> int | str:
    return str(value) if field.endswith("_bytes") else value


def _file(name: str) -> str:
    return f"waldur/{name}"


def _key_name(user: str) -> str:
    return "".join(each if each.isalnum() or each in "._-" else "-" for each in user)[:63] or "user"
