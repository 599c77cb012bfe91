"""Fills in the engine of a Slurm partition, and reads an existing cluster into an operator file."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moulin.app.clock import SystemClock
from moulin.app.wiring.pool_settings import whole_number, yes_or_no
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import (
    EngineError,
    EngineUnavailable,
    InvalidSpec,
    NotFound,
)
from moulin.domain.factory import Pool, PoolMode
from moulin.domain.factoryfile import parse_milliwatts
from moulin.domain.section import check_country, check_name, nearest
from moulin.domain.units import parse_bytes, parse_duration_s
from moulin.engines.slurm.client import SlurmClient
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.firecrest import Firecrest, Stated
from moulin.engines.slurm.formats import read_jobs
from moulin.engines.slurm.forwards import drop_recorded
from moulin.engines.slurm.importing import (
    Naming,
    operator_file,
    read_cluster_nodes,
    read_cluster_partitions,
)
from moulin.engines.slurm.readings import Readings
from moulin.engines.slurm.rest import Rest
from moulin.engines.slurm.settings import OWNER, SlurmSettings
from moulin.engines.slurm.tenants import (
    ASSOCIATIONS,
    LEVELS,
    levels_of,
    read_associations,
    tenants_of,
)
from moulin.engines.slurm.transport import (
    LocalTransport,
    SshTransport,
    Transport,
    hang_up,
    recorded_path,
)
from moulin.engines.slurm.tunnel import Tunnel
from moulin.engines.slurm.wellbeing import FOLDER
from moulin.engines.task.spool import CHECKPOINTS, make_directory
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
    *("replica_time_limit", "control_url", "control_ca", "reach_replicas", "read_nodes", "drain"),
    *("mirror", "mirror_root", "mirror_budgets"),
    *("rest", "rest_user", "rest_token"),
    *("firecrest", "firecrest_system", "node_memory", "node_accelerators"),
)
_DIRECT: Final = "direct"
_BY_SSH: Final = "ssh"
# In a folder for each login node, beside those of the pools: the SSH connection that is open, and for each
# pool the ports that are led over it.
CONNECTION: Final = "connection"
_OVER: Final = ".over-"
_PORTS: Final = ".ports"
_REST: Final = re.compile(r"https?://[^/\s]+(/\S*)?|unix:/\S+")
_CONTROL_URL: Final = re.compile(r"https?://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?/?")
SLURM_PLACE: Final = ("ssh", "conf", "rest", "firecrest", "firecrest_system", "partition")
# Pools for which these are the same reach the same Slurm in the same way.
_WAY: Final = ("ssh", "bin", "conf", "rest", "rest_user", "rest_token")
# FirecREST tells too little: its client answers with what the pool itself says.
_FIRECREST: Final = (
    *("firecrest", "firecrest_system", "partition"),
    *("node_memory", "node_accelerators"),
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to one Slurm, and what was read of it; over SSH also the connection."""

    readings: Readings
    transport: SshTransport | None = None
    folder: Path = Path()


class SlurmWays:
    """The ways to Slurm of one control plane's pools: those that have the same way share it.

    They are kept as the engines over them are, and cost nothing while no pool asks: the process that
    holds an SSH connection ends ten minutes after its last command, and with this one.
    """

    def __init__(self, directory: Path) -> None:
        """Put SSH connections on record in folders under `directory`."""
        self._directory = directory.resolve()
        self._ways: dict[tuple[str, ...], Way] = {}

    def way(self, pool: Pool, words: Mapping[str, str], place: Path) -> Way:
        """Return a pool's way to Slurm; `place` is the pool's directory.

        Raises `InvalidSpec` for what is none, `EngineUnavailable` when a connection cannot be put on
        record.
        """
        names = _WAY if not words["firecrest"] else (*_WAY, *_FIRECREST)
        key = (*(words[name] for name in names), str(place) if words["firecrest"] else "")
        _check_way(pool, words)
        if key not in self._ways:
            self._ways[key] = self._new(pool, words, place)
        return self._ways[key]

    def give_up_ports(self, pool: str, but: Path | None) -> None:
        """Give up what is led for a pool; `but` is the record of those that it has now."""
        for ports in self._directory.glob(f"{_OVER}*/{pool}{_PORTS}"):
            if ports != but:
                drop_recorded(ports, recorded_path(ports.with_name(CONNECTION)))

    def _new(self, pool: Pool, words: Mapping[str, str], place: Path) -> Way:
        if words["rest"] or words["firecrest"] or not words["ssh"]:
            return Way(Readings(slurm_client(pool, words, place)))
        folder = self._directory / f"{_OVER}{_name_of_way(words)}"
        try:
            make_directory(str(folder))
            transport = _ssh(words, folder / CONNECTION)
        except OSError as cause:
            raise EngineUnavailable(
                f"put an SSH connection on record in {folder}: {cause.strerror}",
                hint="the data directory must be writable",
            ) from cause
        return Way(Readings(Commands(transport)), transport, folder)


def slurm_engine(
    directory: Path,
    clock: SystemClock,
    pool: Pool,
    registrations: Registrations | None = None,
    ways: SlurmWays | None = None,
) -> SlurmEngine:
    """Return the engine of a Slurm partition; `directory` is for pools that name none.

    `ways` are those that it shares with other pools.

    Raises `InvalidSpec` for settings that there are not, `EngineUnavailable` when the directory
    cannot be made.
    """
    settings, words = slurm_settings(pool, directory)
    _refuse_former_spool(settings)
    is_led = goes_over_ssh(pool, words)
    ways = ways if ways is not None else SlurmWays(directory.parent)
    way = ways.way(pool, words, settings.directory)
    tunnel = Tunnel(way.transport) if is_led and way.transport is not None else None
    ports = way.folder / f"{pool.name}{_PORTS}" if tunnel is not None else None
    return SlurmEngine(
        settings,
        way.readings.client,
        clock=clock,
        registrations=registrations,
        way=(tunnel, ports) if tunnel is not None and ports is not None else None,
        readings=way.readings,
        before=lambda: ways.give_up_ports(pool.name, but=ports),
    )


def _refuse_former_spool(settings: SlurmSettings) -> None:
    """Raise `EngineUnavailable` where what all pools had together was not given to one of them yet."""
    own = settings.directory / "spool"
    former = settings.directory.parent / "spool"
    if (former / OWNER).exists() and not own.exists():
        raise EngineUnavailable(
            f"open {own}: what runs for this pool may be on record in {former}",
            hint="each pool has a folder of its own now: with Moulin stopped,"
            f" `mkdir -p {settings.directory} && mv {former} {own}` for the pool whose work it holds",
        )


def slurm_settings(pool: Pool, directory: Path) -> tuple[SlurmSettings, Mapping[str, str]]:
    """Return a pool's settings, read and as words; `directory` is for pools that name none.

    Raises `InvalidSpec` for settings that there are not, and for values that they cannot have.
    """
    for name in pool.settings:
        if name not in SLURM_SETTINGS:
            raise InvalidSpec(
                f"connect pool {pool.name!r}: engine slurm has no setting {name!r}",
                hint=nearest(name, SLURM_SETTINGS),
            )
    words = {name: pool.settings.get(name, "") for name in SLURM_SETTINGS}
    shared = Path(words["directory"]) if words["directory"] else directory.parent
    settings = SlurmSettings(
        directory=shared / pool.name if words["directory"] else directory,
        checkpoints=shared / CHECKPOINTS,
        health=shared / FOLDER / _name_of_way(words),
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
        drains=_drains(pool, words),
        is_mirrored=is_mirrored(pool),
    )
    return settings, words


def _name_of_way(words: Mapping[str, str]) -> str:
    """Return a name for how Slurm is reached: two clusters may have nodes of the same names."""
    return hashlib.sha256("\0".join(words[each] for each in _WAY).encode()).hexdigest()[:12]


def _drains(pool: Pool, words: Mapping[str, str]) -> bool:
    """Say whether nodes in quarantine are drained in Slurm, which only its commands do."""
    drains = yes_or_no(pool, "drain", default=False)
    if drains and (words["rest"] or words["firecrest"]):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: nodes are drained by Slurm's commands alone",
            hint="leave `drain` out, or reach Slurm by its commands, here or over `ssh`",
        )
    return drains


def hang_up_all(data: Path) -> None:
    """Close the SSH connections that are on record, left open by a process that was killed."""
    for record in (data / "slurm").glob(f"*/{CONNECTION}"):
        hang_up(record)


def is_mirrored(pool: Pool) -> bool:
    """Say whether a pool's projects have accounts of their own in Slurm.

    Raises `InvalidSpec` where that would contradict what else the pool says.
    """
    if not yes_or_no(pool, "mirror", default=False):
        if yes_or_no(pool, "mirror_budgets", default=False):
            raise InvalidSpec(
                f"connect pool {pool.name!r}: `mirror_budgets` closes accounts that nobody mirrors",
                hint="write `mirror: yes` beside it",
            )
        return False
    yes_or_no(pool, "mirror_budgets", default=False)
    if pool.mode is not PoolMode.DELEGATED or pool.settings.get("account"):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: `mirror` is for delegated pools without an `account`",
            hint="write `mode: delegated`, and leave `account` out",
        )
    return True


def goes_over_ssh(pool: Pool, words: Mapping[str, str]) -> bool:
    """Say whether replicas are reached over the pool's SSH connection.

    Raises `InvalidSpec` for another word, and where there is no such connection.
    """
    said = words["reach_replicas"] or _DIRECT
    if said not in (_DIRECT, _BY_SSH):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: setting reach_replicas is {said!r}",
            hint=f"write {_DIRECT} or {_BY_SSH}",
        )
    if said == _BY_SSH and (not words["ssh"] or words["rest"] or words["firecrest"]):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: `reach_replicas: ssh` needs the pool's SSH connection",
            hint="name the login node in the setting `ssh`, without `rest` and `firecrest`",
        )
    return said == _BY_SSH


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
    files: Sequence[Path | None] = (None, None, None, None),
) -> str:
    """Return the operator file of a Slurm cluster, from files or from its own commands.

    `files` hold nodes, partitions, jobs and accounts; without nodes and partitions Slurm is asked for
    all. A Slurm that keeps no accounts has none in the file.

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
    transport = slurm_transport(words) if is_asked else None
    nodes, partitions, jobs = (
        _said(transport, command, file) for command, file in zip(commands, files[:3], strict=True)
    )
    tenants, remarks = _tenants(transport, files[3])
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
        tenants=tenants,
        remarks=remarks,
    )


def _tenants(transport: Transport | None, file: Path | None) -> tuple[list[str], list[str]]:
    """Return the lines that declare who uses a cluster, and what is to be said of its accounts."""
    if file is not None:
        return tenants_of(read_associations(_said(None, ASSOCIATIONS, file).decode())), []
    if transport is None:
        return [], []
    try:
        accounts, levels = (_said(transport, each, None) for each in (ASSOCIATIONS, LEVELS))
    except EngineError:
        return [], [
            "# Slurm keeps no accounts that could be read: who may use it is yours to declare."
        ]
    tenants = tenants_of(read_associations(accounts.decode(errors="replace")))
    return tenants, levels_of(levels.decode(errors="replace"))


def _check_way(pool: Pool, words: Mapping[str, str]) -> None:
    """Raise `InvalidSpec` for an address that is none, and for several ways at once."""
    url = words["rest"] or words["firecrest"]
    if not url:
        return
    if _REST.fullmatch(url) is None or (words["firecrest"] and url.startswith("unix:")):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: {url!r} is no address of a slurmrestd or a FirecREST",
            hint="write http://HOST:PORT or https://HOST:PORT; of a slurmrestd also unix:/PATH",
        )
    others = [name for name in ("ssh", "rest", "firecrest") if words[name]]
    if pool.mode is not PoolMode.DELEGATED or len(others) > 1:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: `{others[-1]}` is for delegated pools, and by itself",
            hint="write `mode: delegated`, and only one of `ssh`, `rest` and `firecrest`",
        )


def slurm_client(pool: Pool, words: Mapping[str, str], directory: Path) -> SlurmClient:
    """Return what speaks with slurmrestd, FirecREST, or Slurm by its commands, as a pool names it.

    Raises `InvalidSpec` for a pool that names several, or what they cannot have.
    """
    _check_way(pool, words)
    if words["rest"]:
        user, token = words["rest_user"], words["rest_token"]
        return Rest(words["rest"], user=user, token_file=token, folder=words["bin"])
    if words["firecrest"]:
        return _firecrest(pool, words, directory)
    return Commands(slurm_transport(words))


def _firecrest(pool: Pool, words: Mapping[str, str], directory: Path) -> Firecrest:
    needed = ("firecrest_system", "rest_token", "partition", "node_memory")
    missing = [name for name in needed if not words[name]]
    if missing:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: FirecREST does not tell {', '.join(missing)}",
            hint="write them under the pool's settings",
        )
    stated = Stated(
        memory_bytes=parse_bytes(words["node_memory"]),
        accelerators=whole_number(pool, "node_accelerators", 0),
        directory=directory.resolve(),
        partition=words["partition"],
    )
    token = words["rest_token"]
    system = words["firecrest_system"]
    return Firecrest(words["firecrest"], system=system, token_file=token, stated=stated)


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


def slurm_transport(words: Mapping[str, str]) -> Transport:
    """Return where a pool's words say that Slurm's commands are: here, or over an SSH connection."""
    return _ssh(words) if words["ssh"] else LocalTransport(_named(words), folder=words["bin"])


def _ssh(words: Mapping[str, str], record: Path | None = None) -> SshTransport:
    folder = words["bin"]
    return SshTransport(words["ssh"], environment=_named(words), folder=folder, record=record)


def _named(words: Mapping[str, str]) -> Mapping[str, str]:
    return {"SLURM_CONF": words["conf"]} if words["conf"] else {}
