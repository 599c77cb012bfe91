"""What a data directory gets before its first control process: keys, and the factory it begins with.

Run by the supervisor as `python -m moulin.app.first_start`, so that the supervisor stays small. The
secrets go into files that only this user may read; what the control plane is given holds their
HMACs. The file with the keys is written last, so that an interrupted first start is done again.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from moulin.app.datadir import (
    BOOTSTRAP,
    CREDENTIALS,
    GATEWAY_KEY,
    PEPPER,
    STORE,
    read_json,
    write_json,
    write_private,
)
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import Conflict, InvalidSpec, LocalError, MoulinError
from moulin.domain.factory import DeclaredObject, Project, kind_of
from moulin.domain.ids import KeyId, OrganisationId, ProjectId, make_id
from moulin.domain.principal import ApiKey, Role
from moulin.domain.section import check_country
from moulin.domain.single import MANAGED_BY, MachineFacts, default_objects
from moulin.domain.wire import encode
from moulin.energy import cpu_power
from moulin.identity import digest, make_key
from moulin.sources.machine import read_machine

KEY_BYTES: Final = 24
PEPPER_BYTES: Final = 32
ENTROPY_BYTES: Final = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a data directory; return 1 after saying why when that is not possible."""
    parser = argparse.ArgumentParser(prog="moulin.app.first_start", description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--factory", type=Path, default=None)
    parser.add_argument("--country", default="")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="declare this machine anew")
    given = parser.parse_args(arguments)
    try:
        if given.again:
            declare_again(given.data, country=given.country, nodes=given.nodes)
        else:
            prepare(given.data, factory=given.factory, country=given.country, nodes=given.nodes)
    except MoulinError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return 1
    return 0


def prepare(data: Path, *, factory: Path | None, country: str, nodes: int) -> None:
    """Write pepper, keys, bootstrap.json and, last, credentials.json.

    Raises `LocalError` for a directory whose store exists and whose keys are gone, `InvalidSpec`
    and `NotFound` for the operator file, and `InvalidSpec` for the country or number of nodes.
    """
    if (data / STORE).exists():
        raise LocalError(
            f"start on {data}: its {CREDENTIALS} is missing, and keys cannot be read back",
            hint=f"restore {CREDENTIALS} from a backup, or choose another --data",
        )
    managed_by, objects = (
        (factory.name, _declared_in(factory))
        if factory
        else (MANAGED_BY, default_objects(machine_facts(country, nodes)))
    )
    project = _first_project(objects, factory)
    pepper = _pepper(data)
    secrets = {name: make_key(os.urandom(KEY_BYTES)) for name in ("operator", "project", "gateway")}
    organisation = OrganisationId(project.organisation)
    keys = (
        _key("operator", Role.OPERATOR, secrets["operator"], pepper),
        _key("gateway", Role.GATEWAY, secrets["gateway"], pepper),
        _key(
            "first key",
            Role.ADMIN,
            secrets["project"],
            pepper,
            owner=(organisation, ProjectId(project.name)),
        ),
    )
    write_private(data / GATEWAY_KEY, secrets["gateway"].encode() + b"\n")
    write_json(data / BOOTSTRAP, _bootstrap(managed_by, objects, keys))
    write_json(
        data / CREDENTIALS,
        {
            "control_url": "",
            "gateway_url": "",
            "project": project.name,
            "api_key": secrets["project"],
            "operator_key": secrets["operator"],
        },
    )


def declare_again(data: Path, *, country: str, nodes: int) -> None:
    """Declare this machine anew, in a country that was not stated at the first start.

    Raises `Conflict` for a factory that came from an operator file, and what the control plane
    raises.
    """
    from moulin.app.down import operator_credentials
    from moulin.sdk import Moulin

    managed_by = str(read_json(data / BOOTSTRAP).get("managed_by", ""))
    if managed_by != MANAGED_BY:
        raise Conflict(
            f"this factory's sites are declared in {managed_by}",
            hint=f"state the country there, then `moulin apply {managed_by}`",
        )
    with Moulin(credentials=operator_credentials(data)) as client:
        client.factory.apply(MANAGED_BY, default_objects(machine_facts(country, nodes)))


def machine_facts(country: str, nodes: int) -> MachineFacts:
    """Return what is known of this machine.

    Raises `InvalidSpec` for a country that is no code and for more nodes than CPUs.
    """
    machine = read_machine()
    cpus = len(machine.cpu_ids)
    if not 1 <= nodes <= cpus:
        raise InvalidSpec(
            f"divide this machine into {nodes} nodes: it has {cpus} CPUs",
            hint=f"give --nodes a number from 1 to {cpus}",
        )
    power = cpu_power(machine.cpu_model, 1000 * cpus)
    name = machine.gpus[0].name if machine.gpus else ""
    return MachineFacts(
        cpus=cpus,
        memory_bytes=machine.memory_bytes,
        cpu_title=machine.cpu_model,
        architecture=os.uname().machine,
        idle_mw=power.idle_mw,
        peak_mw=power.peak_mw,
        power_source=power.source,
        accelerator=MACHINE_CLASSES.get(name),
        nodes=nodes,
        country=check_country("the settings", "country", country) if country else "",
    )


def _declared_in(factory: Path) -> tuple[DeclaredObject, ...]:
    from moulin.app.files import read_factory_file

    return read_factory_file(factory)


def _first_project(objects: Sequence[DeclaredObject], factory: Path | None) -> Project:
    for each in objects:
        if isinstance(each, Project):
            return each
    raise InvalidSpec(
        f"start with {factory}: it declares no project, so there is nobody to give a key to",
        hint="add one under `projects:`",
    )


def _pepper(data: Path) -> bytes:
    path = data / PEPPER
    if not path.exists():
        write_private(path, os.urandom(PEPPER_BYTES))
    return path.read_bytes()


def _key(
    name: str,
    role: Role,
    secret: str,
    pepper: bytes,
    *,
    owner: tuple[OrganisationId, ProjectId] = (OrganisationId(""), ProjectId("")),
) -> ApiKey:
    now_ns = time.time_ns()
    return ApiKey(
        id=KeyId(make_id("key", now_ns, int.from_bytes(os.urandom(ENTROPY_BYTES)))),
        name=name,
        role=role,
        organisation=owner[0],
        project=owner[1],
        digest=digest(pepper, secret),
        created_at_ns=now_ns,
    )


def _bootstrap(
    managed_by: str, objects: Sequence[DeclaredObject], keys: Sequence[ApiKey]
) -> dict[str, Any]:
    return {
        "managed_by": managed_by,
        "objects": [{"kind": kind_of(each).value, "body": encode(each)} for each in objects],
        "keys": [encode(key) for key in keys],
    }


if __name__ == "__main__":
    sys.exit(main())
