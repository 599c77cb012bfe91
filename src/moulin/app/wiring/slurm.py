"""Fills in the engine of a Slurm partition, and reads an existing cluster into an operator file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from moulin.app.clock import SystemClock
from moulin.app.wiring.pool_settings import whole_number, yes_or_no
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import (
    EngineUnavailable,
    InvalidSpec,
    NotFound,
)
from moulin.domain.factory import Organisation, Pool, PoolMode, Project
from moulin.domain.factoryfile import parse_milliwatts
from moulin.domain.section import check_country, check_name, nearest
from moulin.domain.units import parse_duration_s
from moulin.engines.slurm.accounts import changes, read_tree, run, wanted_accounts
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.driver import Driver
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.formats import read_jobs
from moulin.engines.slurm.importing import (
    Naming,
    operator_file,
    read_cluster_nodes,
    read_cluster_partitions,
)
from moulin.engines.slurm.rest import Rest
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport, SshTransport, Transport
from moulin.ports.registrations import Registrations

# What a pool with `engine: slurm` can be told, and what of it names the machines.
SLURM_SETTINGS: Final = (
    *(
        "partition",
        "account",
        "qos",
        "reservation",
        "constraint",
        "directory",
        "ssh",
        "bin",
        "conf",
    ),
    *("python", "poll_ms", "images", "accelerator_class", "idle_power", "peak_power"),
    *("replica_time_limit", "control_url", "control_ca", "read_nodes", "mirror", "mirror_root"),
    *("rest", "rest_user", "rest_token"),
)
_REST: Final = re.compile(r"https?://[^/\s]+|unix:/\S+")
_CONTROL_URL: Final = re.compile(r"https?://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?/?")
SLURM_PLACE: Final = ("ssh", "conf", "rest", "partition")


def slurm_engine(
    directory: Path, clock: SystemClock, pool: Pool, registrations: Registrations | None = None
) -> SlurmEngine:
    """Return the engine of a Slurm partition; `directory` is for pools that name none.

    Raises `InvalidSpec` for settings that there are not, `EngineUnavailable` when the directory
    cannot be made.
    """
    for name in pool.settings:
        if name not in SLURM_SETTINGS:
            raise InvalidSpec(
                f"connect pool {pool.name!r}: engine slurm has no setting {name!r}",
                hint=nearest(name, SLURM_SETTINGS),
            )
    words = {name: pool.settings.get(name, "") for name in SLURM_SETTINGS}
    place = Path(words["directory"]) if words["directory"] else directory
    settings = SlurmSettings(
        directory=place,
        partition=words["partition"],
        account=words["account"],
        qos=words["qos"],
        reservation=words["reservation"],
        constraint=words["constraint"],
        prefix=f"{pool.name}-",
        is_delegated=pool.mode is PoolMode.DELEGATED,
        machine_class=pool.machine_class,
        accelerator_class=words["accelerator_class"] or pool.machine_class,
        python=words["python"] or "python3",
        poll_s=max(1, whole_number(pool, "poll_ms", 1000)) / 1000,
        idle_mw=parse_milliwatts(words["idle_power"] or "0W"),
        peak_mw=parse_milliwatts(words["peak_power"] or "0W"),
        replica_time_limit_s=parse_duration_s(words["replica_time_limit"] or "0s"),
        control_url=_checked_url(pool, words["control_url"]),
        control_ca=words["control_ca"],
        images=_checked_tool(pool, words["images"]),
        reads_nodes=yes_or_no(pool, "read_nodes", default=True),
        is_mirrored=is_mirrored(pool),
    )
    return SlurmEngine(settings, _driver(pool, words), clock=clock, registrations=registrations)


def is_mirrored(pool: Pool) -> bool:
    """Say whether a pool's projects have accounts of their own in Slurm.

    Raises `InvalidSpec` where that would contradict what else the pool says.
    """
    if not yes_or_no(pool, "mirror", default=False):
        return False
    if pool.mode is not PoolMode.DELEGATED or pool.settings.get("account"):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: `mirror` is for delegated pools without an `account`",
            hint="write `mode: delegated`, and leave `account` out",
        )
    return True


def mirror_slurm(
    pool: Pool,
    organisations: Sequence[Organisation],
    projects: Sequence[Project],
    *,
    is_dry_run: bool,
) -> tuple[tuple[str, ...], ...]:
    """Make Slurm's accounts as the factory's projects are; return the commands that it took.

    With `is_dry_run` Slurm is only asked. Raises `EngineRefused` where Slurm keeps no accounts or
    refuses a change, `EngineUnavailable` when it cannot be asked, `InUse` for an account that
    somebody else made.
    """
    words = {name: pool.settings.get(name, "") for name in SLURM_SETTINGS}
    transport = _slurm_transport(words)
    tree = read_tree(transport)
    root, qos = words["mirror_root"] or "root", words["qos"]
    wanted = wanted_accounts(organisations, projects, tree, root=root, qos=qos)
    commands = changes(wanted, tree)
    if not is_dry_run:
        run(transport, commands)
    return commands


def _checked_url(pool: Pool, url: str) -> str:
    """Return where replicas register; raises `InvalidSpec` for what is no URL of a control plane."""
    if url and _CONTROL_URL.fullmatch(url) is None:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: control_url {url!r} is no address of a control plane",
            hint="write http(s)://HOST:PORT as the nodes reach it, or leave it out",
        )
    return url.rstrip("/")


def _checked_tool(pool: Pool, name: str) -> str:
    """Return what nodes run images with; raises `InvalidSpec` for what Moulin cannot drive."""
    if name not in ("", "pyxis") and Path(name).name not in ("apptainer", "singularity"):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: images {name!r} is no container tool",
            hint="write pyxis, apptainer, or Apptainer's path on the nodes, or leave it out",
        )
    return name


def import_slurm(
    *,
    country: str,
    site: str,
    settings: Mapping[str, str],
    is_delegated: bool,
    files: Sequence[Path | None] = (None, None, None),
) -> str:
    """Return the operator file of a Slurm cluster, from files or from its own commands.

    `files` hold nodes, partitions and jobs; without nodes and partitions Slurm is asked for all.
    Raises `EngineUnavailable` when it cannot be asked, `NotFound` and `InvalidSpec` for the files,
    and `InvalidSpec` for a country that is no code.
    """
    words = {name: settings.get(name, "") for name in SLURM_SETTINGS}
    is_asked = files[0] is None or files[1] is None
    commands = (
        ("scontrol", "show", "node", "-d", "-o"),
        ("scontrol", "show", "partition", "-o"),
        ("squeue", "--json", "--states=all"),
    )
    transport = _slurm_transport(words) if is_asked else None
    nodes, partitions, jobs = (
        _said(transport, command, file) for command, file in zip(commands, files, strict=True)
    )
    naming = Naming(
        site=check_name("--site", "site", site),
        country=check_country("--country", "country", country),
        classes=tuple(MACHINE_CLASSES),
        settings=settings,
        is_delegated=is_delegated,
    )
    return operator_file(
        read_cluster_nodes(nodes),
        read_cluster_partitions(partitions),
        read_jobs(jobs) if jobs else (),
        naming,
    )


def _driver(pool: Pool, words: Mapping[str, str]) -> Driver:
    """Return the way to Slurm that a pool names: slurmrestd, or Slurm's commands."""
    if not words["rest"]:
        return Commands(_slurm_transport(words))
    if _REST.fullmatch(words["rest"]) is None:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: rest {words['rest']!r} is no address of a slurmrestd",
            hint="write http://HOST:PORT, https://HOST:PORT or unix:/PATH",
        )
    if pool.mode is not PoolMode.DELEGATED or words["ssh"]:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: slurmrestd is told of no nodes by name",
            hint="write `mode: delegated` and leave `ssh` out, or leave `rest` out",
        )
    return Rest(words["rest"], user=words["rest_user"], token_file=words["rest_token"])


def _said(transport: Transport | None, command: Sequence[str], file: Path | None) -> bytes:
    if file is not None:
        try:
            return file.read_bytes()
        except OSError as cause:
            raise NotFound(f"read {file}: {cause.strerror}", hint="check the path") from cause
    if transport is None:
        return b""
    answer = transport.run(command)
    if answer.status != 0:
        raise EngineUnavailable(
            f"run {' '.join(command)}: {answer.words}",
            hint="run this where Slurm's commands work, or give --ssh, --conf or files",
        )
    return answer.output


def _slurm_transport(words: Mapping[str, str]) -> Transport:
    environment = {"SLURM_CONF": words["conf"]} if words["conf"] else {}
    if not words["ssh"]:
        return LocalTransport(environment, folder=words["bin"])
    return SshTransport(words["ssh"], environment=environment, folder=words["bin"])
