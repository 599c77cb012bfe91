"""The backend that Waldur's site agent loads: its verbs in the words of a Moulin.

An offering is a Moulin, a resource a project of it with quota and budget, a member a key, and usage what
receipts say. Paused, a project has no money and no room, so that nothing runs and no model answers; what
it had is kept in a file until it is restored.
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from waldur_site_agent.backend import backends, logger
from waldur_site_agent.backend.clients import BaseClient
from waldur_site_agent.backend.exceptions import BackendError
from waldur_site_agent.backend.structures import Association, ClientResource

from moulin_waldur.connection import QUOTA, Connection, limits_of, read_key
from moulin_waldur.tally import UNITS, Tally

TOTAL = "TOTAL_ACCOUNT_USAGE"


class MoulinClient(BaseClient):
    """What the agent's generic code asks of a backend, by the control API."""

    def __init__(self, connection: Connection, directory: Path) -> None:
        self.connection = connection
        self.directory = directory

    def list_resources(self) -> list[ClientResource]:
        """Return the projects that were ordered."""
        return [_resource(project["name"], project) for project in self.connection.projects()]

    def get_resource(self, resource_id: str) -> ClientResource | None:
        """Return one, None when there is none."""
        project = self.connection.project(resource_id)
        return _resource(resource_id, project) if project is not None else None

    def create_resource(
        self, name: str, description: str, organization: str, parent_name: str | None = None
    ) -> str:
        """Make a project with nothing in it: its limits come next."""
        self.connection.declare(name, _nothing())
        return name

    def delete_resource(self, name: str) -> str:
        """End what runs there, and forget it; receipts stay."""
        self.connection.remove(name)
        self.paused_file(name).unlink(missing_ok=True)
        return name

    def set_resource_limits(self, resource_id: str, limits_dict: dict[str, int]) -> str | None:
        """Give a project its limits; a paused one gets them when it is restored."""
        limits = {name: int(value) for name, value in limits_dict.items()}
        paused = self.paused_file(resource_id)
        if paused.exists():
            _write(paused, json.dumps(limits))
        else:
            self.connection.declare(resource_id, limits)
        return None

    def get_resource_limits(self, resource_id: str) -> dict[str, int]:
        """Return the limits of a project, of a paused one those it will have."""
        paused = self.paused_file(resource_id)
        if paused.exists():
            return dict(json.loads(paused.read_text()))
        project = self.connection.project(resource_id)
        return limits_of(project) if project is not None else {}

    def get_resource_user_limits(self, resource_id: str) -> dict[str, dict[str, int]]:
        """Return none: members share their project's."""
        return {}

    def set_resource_user_limits(
        self, resource_id: str, username: str, limits_dict: dict[str, int]
    ) -> str:
        """Refuse what there is none of."""
        raise BackendError("members of a Moulin project share its quota and budget")

    def get_association(self, user: str, resource_id: str) -> Association | None:
        """Return that a user has a valid key of a project."""
        if user not in self.connection.users(resource_id):
            return None
        return Association(account=resource_id, user=user)

    def create_association(
        self, username: str, resource_id: str, default_account: str | None = None
    ) -> str:
        """Make a key and leave its secret in a file for whoever brings it to its user."""
        path = self.key_file(resource_id, username)
        _write(path, f"{self.connection.issue(resource_id, username)}\n")
        return str(path)

    def delete_association(self, username: str, resource_id: str) -> str:
        """Revoke a user's keys."""
        self.connection.revoke(resource_id, username)
        self.key_file(resource_id, username).unlink(missing_ok=True)
        return username

    def get_usage_report(self, resource_ids: list[str], timezone: str | None = None) -> list[Any]:
        """Return nothing raw: usage is summed from receipts."""
        return []

    def list_resource_users(self, resource_id: str) -> list[str]:
        """Return who has a valid key."""
        return list(self.connection.users(resource_id))

    def paused_file(self, resource: str) -> Path:
        """Return where the limits of a paused project are."""
        return self.directory / "paused" / f"{resource}.json"

    def key_file(self, resource: str, user: str) -> Path:
        """Return where a new secret is left, readable by this user alone."""
        return self.directory / "keys" / resource / user

    def tally(self, resource: str) -> Tally:
        """Return a project's usage, after counting the receipts that are new."""
        path = self.directory / "usage" / f"{resource}.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = Tally(path)
        found.count(self.connection.receipts(resource, found.after))
        return found


class MoulinBackend(backends.BaseBackend):
    """See the module; `backend_settings` are listed in the guide."""

    def __init__(
        self, backend_settings: dict[str, Any], backend_components: dict[str, dict[str, Any]]
    ) -> None:
        super().__init__(backend_settings, backend_components)
        self.backend_type = "moulin"
        directory = Path(backend_settings["directory"])
        connection = Connection(
            backend_settings["control_url"],
            read_key(backend_settings),
            backend_settings["organisation"],
            verify=backend_settings.get("ca", True),
        )
        self.client = MoulinClient(connection, directory)

    def ping(self, raise_exception: bool = False) -> bool:  # noqa: FBT001, FBT002 - the agent's
        """Say whether the Moulin answers."""
        try:
            self.client.connection.version()
        except BackendError:
            if raise_exception:
                raise
            return False
        return True

    def diagnostics(self) -> bool:
        """Log what there is."""
        connection = self.client.connection
        logger.info("Moulin %s, organisation %s", connection.version(), connection.organisation)
        logger.info("projects: %s", [project["name"] for project in connection.projects()])
        return True

    def list_components(self) -> list[str]:
        """Return what can be limited or reported."""
        return sorted({*QUOTA, *UNITS})

    def downscale_resource(self, resource_backend_id: str) -> bool:
        """Let nothing new run; what runs goes on, and models answer."""
        self._pause(resource_backend_id, {**self._limits(resource_backend_id), "jobs": 0})
        return True

    def pause_resource(self, resource_backend_id: str) -> bool:
        """Take all money and room away."""
        self._pause(resource_backend_id, _nothing())
        return True

    def restore_resource(self, resource_backend_id: str) -> bool:
        """Give back what it had."""
        paused = self.client.paused_file(resource_backend_id)
        if paused.exists():
            self.client.connection.declare(resource_backend_id, json.loads(paused.read_text()))
            paused.unlink()
        return True

    def get_resource_metadata(self, resource_backend_id: str) -> dict[str, Any]:
        """Return where the project is, and whether it is paused."""
        return {
            "control_url": self.backend_settings["control_url"],
            "project": resource_backend_id,
            "paused": self.client.paused_file(resource_backend_id).exists(),
        }

    def get_usage_report_for_period(
        self,
        resource_backend_ids: list[str],
        year: int,
        month: int,
        waldur_resource: object = None,
    ) -> dict[str, Any]:
        """Return what projects used in a month, by when it was used (UTC)."""
        wanted = f"{year:04}-{month:02}"
        return {name: self._used(name, wanted) for name in resource_backend_ids}

    def _get_usage_report(self, resource_backend_ids: list[str]) -> dict[str, Any]:
        now = time.gmtime()
        return self.get_usage_report_for_period(resource_backend_ids, now.tm_year, now.tm_mon)

    def _used(self, resource: str, month: str) -> dict[str, dict[str, float]]:
        """Return usage in the units of the offering; who of the members it was is not said."""
        components = [name for name in self.backend_components if name in UNITS]
        found = self.client.tally(resource).of(month, components)
        return {TOTAL: {name: amount / self._factor(name) for name, amount in found.items()}}

    def _factor(self, component: str) -> float:
        settings = self.backend_components[component]
        return float(settings.get("unit_factor_reporting") or settings.get("unit_factor") or 1)

    def _collect_resource_limits(
        self, waldur_resource: Any
    ) -> tuple[dict[str, int], dict[str, int]]:
        asked = waldur_resource.limits.to_dict() if waldur_resource.limits else {}
        wanted = {**self.backend_settings.get("default_limits", {}), **asked}
        ours = {name: int(value) for name, value in wanted.items() if name in _limitable()}
        factors = {name: self.backend_components.get(name, {}) for name in ours}
        native = {
            name: int(value * (factors[name].get("unit_factor") or 1))
            for name, value in ours.items()
        }
        return native, ours

    def _pre_create_resource(
        self, waldur_resource: Any, user_context: dict[str, Any] | None = None
    ) -> None:
        """Nothing comes before a project: its organisation is the operator's to declare."""

    def _limits(self, resource: str) -> dict[str, int]:
        limits: dict[str, int] = self.client.get_resource_limits(resource)
        return limits

    def _pause(self, resource: str, limits: dict[str, int]) -> None:
        paused = self.client.paused_file(resource)
        if not paused.exists():
            _write(paused, json.dumps(self._limits(resource)))
        self.client.connection.declare(resource, limits)


def _limitable() -> Iterable[str]:
    return (*QUOTA, "eur")


def _nothing() -> dict[str, int]:
    return dict.fromkeys(_limitable(), 0)


def _resource(name: str, project: dict[str, Any]) -> ClientResource:
    return ClientResource(name=name, organization=project["organisation"], backend_id=name)


def _write(path: Path, text: str) -> None:
    """Put a file in place whole, for this user alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    temporary.write_text(text)
    temporary.replace(path)
