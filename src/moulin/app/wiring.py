"""The one place that names concrete classes: ports filled in, parts joined, nothing decided.

`open_factory` gives a leading control plane and the API's services over one data directory.
"""

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from moulin import __version__
from moulin.api.services import ApiServices
from moulin.app.batches import BatchDesk
from moulin.app.clock import SystemClock, SystemDice
from moulin.app.datadir import OBJECTS
from moulin.app.evidence import StoredEvidence
from moulin.app.join import HeadStarter, ray_place
from moulin.app.lines import Lines, own_gateway
from moulin.app.logs import log_reader
from moulin.app.meters import SIMULATED_CLASS, MachineMeter
from moulin.app.models import ModelLibrary
from moulin.app.own_machine import OwnMachine
from moulin.app.webhooks import Webhooks
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.controlplane.allowances import tell_again
from moulin.controlplane.inbox import Inbox
from moulin.controlplane.plane import Plane, PlaneSettings, Ports
from moulin.controlplane.recover import take_lead
from moulin.controlplane.telling import tell_ends_again
from moulin.domain.errors import (
    EngineRefused,
    EngineUnavailable,
    InvalidSpec,
    LocalError,
    NotFound,
)
from moulin.domain.factory import Pool, PoolMode
from moulin.domain.factoryfile import parse_milliwatts
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import ENDED_PHASES, NodeCapacity
from moulin.domain.section import check_country, check_name, nearest
from moulin.energy import cpu_power
from moulin.engines.kubernetes.api import Api, open_client
from moulin.engines.kubernetes.engine import KubernetesEngine
from moulin.engines.kubernetes.manifests import KubernetesPool
from moulin.engines.local.cgroup import find_cgroup_base
from moulin.engines.local.engine import LocalEngine
from moulin.engines.local.nodes import divide_machine
from moulin.engines.ray.engine import RayEngine, RayPool
from moulin.engines.ray.package import pack
from moulin.engines.simulated.engine import SimulatedEngine
from moulin.engines.simulated.world import World
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.formats import read_jobs
from moulin.engines.slurm.importing import (
    Naming,
    operator_file,
    read_cluster_nodes,
    read_cluster_partitions,
)
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport, SshTransport, Transport
from moulin.ledger import key_name
from moulin.ports.engine import Engine, ListsSteps
from moulin.ports.store import Store
from moulin.scheduler import SchedulerPolicy
from moulin.sources.machine import read_machine
from moulin.sources.signing import open_signer
from moulin.sources.wellbeing import MachineHealth
from moulin.store.folder import ObjectFolder
from moulin.store.opening import open_store

SIMULATED_NODES_MAX: Final = 200_000
COUNT_DIGITS_MAX: Final = 18
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
    *("python", "poll_ms", "accelerator_class", "idle_power", "peak_power"),
)
SLURM_PLACE: Final = ("ssh", "conf", "partition")
# What a pool with `engine: ray` can be told, and what a server of its cluster runs: the local engine.
RAY_SETTINGS: Final = (
    *("address", "agent_port", "gcs_port", "head", "python", "spool", "token_file"),
)
RAY_HEAD: Final = "here"  # the one value of `head`: start it on this machine when it is not there
RAY_AGENT_PORT: Final = 8266
MEMBER: Final = "moulin.engines.local.member:LocalMember"
MEMBER_PACKAGES: Final = (
    *("moulin.domain", "moulin.ports"),
    *("moulin.engines.local", "moulin.engines.task", "moulin.engines.ray"),
)
# What a pool with `engine: kubernetes` can be told.
KUBERNETES_SETTINGS: Final = (
    *("accelerator", "context", "image", "kubeconfig", "namespace", "queue", "selector"),
)
# The settings that say which machines a pool has, and what those are.
SHARED_PLACES: Final[Mapping[str, tuple[Sequence[str], str]]] = {
    "slurm": (SLURM_PLACE, "Slurm partition"),
    "ray": (("address",), "Ray cluster"),
    "kubernetes": (("kubeconfig", "context", "selector"), "Kubernetes nodes"),
}
STOP_GRACE_S: Final = 5
NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorySettings:
    """What a control process is told: where its data is and how its factory is called.

    Model files are in `models_dir`, or without one in the data directory.
    """

    data_dir: Path
    models_dir: Path | None = None
    database: str = ""
    factory_name: str = "moulin"
    site_name: str = "this-site"
    plane: PlaneSettings = field(default_factory=PlaneSettings)


@dataclass(slots=True, kw_only=True)
class Factory:
    """A control plane with everything around it."""

    plane: Plane
    services: ApiServices
    store: Store
    desk: BatchDesk


class EngineBook:
    """Makes the engine of a pool once and keeps it; another engine or setting is another engine."""

    def __init__(self, data_dir: Path, clock: SystemClock) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._engines: dict[tuple[str, ...], Engine] = {}
        self._makers: dict[str, Callable[[Pool], Engine]] = {
            "local": self._local,
            "simulated": self._simulated,
            "slurm": self._slurm,
            "ray": self._ray,
            "kubernetes": self._kubernetes,
        }

    def engine_for(self, pool: Pool) -> Engine:
        """Return the pool's engine.

        Raises `EngineRefused` for an engine that does not exist, `InvalidSpec` for settings it
        cannot have.
        """
        key = (pool.name, pool.engine, *(f"{k}={v}" for k, v in sorted(pool.settings.items())))
        if key not in self._engines:
            maker = self._makers.get(pool.engine)
            if maker is None:
                raise EngineRefused(
                    f"connect pool {pool.name!r}: there is no engine {pool.engine!r}",
                    hint=f"engines: {', '.join(sorted(self._makers))}",
                )
            self._engines[key] = maker(pool)
        return self._engines[key]

    @staticmethod
    def check_pools(pools: Sequence[Pool]) -> None:
        """Raise `InvalidSpec` when several pools would each count all of the same machines."""
        clusters: dict[tuple[str, ...], str] = {}
        for pool in pools:
            names, title = SHARED_PLACES.get(pool.engine, ((), ""))
            cluster = (pool.engine, *(pool.settings.get(name, "") for name in names))
            other = clusters.setdefault(cluster, pool.name)
            if names and other != pool.name:
                raise InvalidSpec(
                    f"connect pools {other}, {pool.name}: both are the same {title}",
                    hint=f"keep one of them, or give each a `{names[-1]}` of its own",
                    details={"pools": [other, pool.name]},
                )
        here = [pool.name for pool in pools if pool.engine == "local"]
        if len(here) > 1:
            raise InvalidSpec(
                f"connect pools {', '.join(here)}: engine local is this one machine, and each of"
                " them would count all of it",
                hint="keep one of them; its setting `nodes` divides the machine into nodes",
                details={"pools": here},
            )

    def _local(self, pool: Pool) -> Engine:
        return local_engine(self._data_dir, self._clock, _count(pool, "nodes", 1), pool.name)

    def _simulated(self, pool: Pool) -> Engine:
        count = _count(pool, "nodes", 1)
        if not 0 < count <= SIMULATED_NODES_MAX:
            raise EngineRefused(
                f"simulate {count} nodes in pool {pool.name!r}",
                hint=f"use 1 to {SIMULATED_NODES_MAX}",
            )
        cpus = _count(pool, "cpus", 64)
        nodes = [
            NodeCapacity(
                node=NodeId(f"{pool.name}-{index:05d}"),
                cpu_milli=cpus * 1000,
                memory_bytes=_count(pool, "memory_bytes", 256 * 10**9),
                machine_class=SIMULATED_CLASS,
                accelerators=_count(pool, "accelerators", 0),
                accelerator_class=pool.settings.get("accelerator_class", ""),
                boot_id=SIMULATED_CLASS,
            )
            for index in range(count)
        ]
        return SimulatedEngine(World(self._clock, nodes))

    def _slurm(self, pool: Pool) -> Engine:
        return slurm_engine(self._data_dir / "slurm" / pool.name, self._clock, pool)

    def _ray(self, pool: Pool) -> Engine:
        return ray_engine(self._data_dir / "ray" / pool.name, self._clock, pool)

    def _kubernetes(self, pool: Pool) -> Engine:
        return kubernetes_engine(self._clock, pool)


def kubernetes_engine(clock: SystemClock, pool: Pool) -> KubernetesEngine:
    """Return the engine of a Kubernetes cluster.

    Raises `InvalidSpec` for settings that there are not, and for a delegated pool;
    `EngineUnavailable` when the client is not installed or knows no such cluster.
    """
    _check_settings(pool, KUBERNETES_SETTINGS)
    words = pool.settings
    reached = KubernetesPool(
        name=pool.name,
        namespace=words.get("namespace", "default"),
        queue=words.get("queue", ""),
        image=words.get("image", ""),
        selector=words.get("selector", ""),
        accelerator=words.get("accelerator", "nvidia.com/gpu"),
        machine_class=pool.machine_class,
    )
    client = open_client(words.get("kubeconfig", ""), words.get("context", ""))
    return KubernetesEngine(reached, Api(client, reached.namespace), clock=clock)


def _check_settings(pool: Pool, names: Sequence[str]) -> None:
    """Raise `InvalidSpec` for a setting that a pool's engine does not have, or a delegated pool."""
    for name in pool.settings:
        if name not in names:
            raise InvalidSpec(
                f"connect pool {pool.name!r}: engine {pool.engine} has no setting {name!r}",
                hint=nearest(name, names),
            )
    if pool.mode is PoolMode.DELEGATED:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: a pool of engine {pool.engine} is owned",
            hint="leave `mode` out",
        )


def ray_engine(directory: Path, clock: SystemClock, pool: Pool) -> RayEngine:
    """Return the engine of a Ray cluster; `directory` keeps which node each step was given to.

    Raises `InvalidSpec` for settings that there are not, and for a delegated pool.
    """
    _check_settings(pool, RAY_SETTINGS)
    place = ray_place(pool.name, pool.settings)
    port = _count(pool, "agent_port", RAY_AGENT_PORT)
    reached = RayPool(
        name=pool.name,
        address=place.address,
        agent_address=place.at(port),
        token_file=place.token_file,
        package=pack(MEMBER_PACKAGES),
        opens=MEMBER,
        machine_class=pool.machine_class,
        spool=pool.settings.get("spool", ""),
        python=pool.settings.get("python", "python"),
    )
    revive = HeadStarter(place, directory) if pool.settings.get("head") == RAY_HEAD else None
    return RayEngine(
        directory / "steps", pool=reached, clock=clock, rate=_with_cpu_power, revive=revive
    )


def _with_cpu_power(node: NodeCapacity, cpu_model: str) -> NodeCapacity:
    power = cpu_power(cpu_model, node.cpu_milli)
    return replace(
        node,
        idle_mw=power.idle_mw,
        peak_mw=power.peak_mw,
        power_source=power.source,
        power_quality=power.quality,
        power_uncertainty_ppm=power.uncertainty_ppm,
    )


def slurm_engine(directory: Path, clock: SystemClock, pool: Pool) -> SlurmEngine:
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
        poll_s=max(1, _count(pool, "poll_ms", 1000)) / 1000,
        idle_mw=parse_milliwatts(words["idle_power"] or "0W"),
        peak_mw=parse_milliwatts(words["peak_power"] or "0W"),
    )
    return SlurmEngine(settings, _slurm_transport(words), clock=clock)


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


def _count(pool: Pool, name: str, default: int) -> int:
    """Read one of a pool's settings as a whole number.

    Raises `InvalidSpec` for anything else.
    """
    text = pool.settings.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > COUNT_DIGITS_MAX:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: setting {name} is {text!r}",
            hint="write a whole number, not below zero",
        )
    return int(text)


def local_engine(data_dir: Path, clock: SystemClock, nodes: int, prefix: str) -> LocalEngine:
    """Return the engine of this machine, divided into `nodes` nodes.

    Raises `InvalidSpec` for more nodes than CPUs, `SourceUnavailable` without a Linux /proc.
    """
    machine = read_machine()
    power = cpu_power(machine.cpu_model, len(machine.cpu_ids) * 1000)
    divided = divide_machine(
        nodes=nodes,
        cpu_ids=machine.cpu_ids,
        memory_bytes=machine.memory_bytes,
        boot_id=machine.boot_id,
        accelerators=len(machine.gpus),
        accelerator_class=machine.gpus[0].name if machine.gpus else "",
        idle_mw=power.idle_mw,
        peak_mw=power.peak_mw,
        power_source=power.source,
        node_prefix=prefix,
    )
    stated = [
        replace(node, power_quality=power.quality, power_uncertainty_ppm=power.uncertainty_ppm)
        for node in divided
    ]
    return LocalEngine(
        data_dir,
        clock=clock,
        nodes=stated,
        cgroup=find_cgroup_base(),
        booted_at_ns=machine.booted_at_ns,
        read_health=MachineHealth(data_dir, clock),
    )


def open_factory(settings: FactorySettings) -> Factory:
    """Open the store, take the lead, and join the parts.

    Raises `StoreUnavailable` when another process leads, `StoreCorrupt` when the log cannot be
    folded, `LocalError` when the key files are not ours.
    """
    data = settings.data_dir
    clock = SystemClock()
    pepper = read_pepper(data / "pepper")
    store = open_store(settings.database or data / "moulin.sqlite")
    signer = open_signer(data / "signing.key", key_name(settings.factory_name))
    library = ModelLibrary(settings.models_dir or data, data / "replica_keys", pepper)
    engines = EngineBook(data, clock)
    inbox = Inbox()
    webhooks = Webhooks(pepper=pepper, now_ns=clock.now_ns, settle=inbox.call)
    plane = take_lead(
        Ports(
            store=store,
            clock=clock,
            ids=SystemDice(),
            engine_for=engines.engine_for,
            launcher=library,
            meter=MachineMeter(clock),
            signer=signer,
            check_pools=engines.check_pools,
            notify=webhooks.offer,
        ),
        settings.plane,
        SchedulerPolicy(staleness_s=settings.plane.snapshot_staleness_s),
        inbox,
    )
    tell_again(plane)
    tell_ends_again(plane)
    folder = ObjectFolder(data / OBJECTS)
    desk = BatchDesk(
        shelf=lambda: plane.books.objects,
        files=folder,
        call=inbox.call,
        clock=clock,
        ids=SystemDice(),
        lines=Lines(lambda: own_gateway(data), pepper),
    )
    services = ApiServices(
        call=inbox.call,
        store=store,
        keyring=lambda: plane.books.keyring,
        objects=lambda: plane.books.objects,
        contents=folder,
        desk=desk,
        licences=lambda: plane.books.licences,
        machine=OwnMachine(),
        logs=log_reader(plane),
        shelf=library,
        evidence=StoredEvidence(
            store=store,
            signer=signer,
            factory=settings.factory_name,
            site=settings.site_name,
        ),
        clock=clock,
        ids=SystemDice(),
        pepper=pepper,
        version=__version__,
    )
    return Factory(plane=plane, services=services, store=store, desk=desk)


def read_pepper(path: Path) -> bytes:
    """Return the secret that keys are digested with.

    Raises `LocalError` when it is missing, empty, or readable by others.
    """
    try:
        mode, pepper = path.stat().st_mode, path.read_bytes()
    except OSError as cause:
        raise LocalError(
            f"read {path}: {cause.strerror}",
            hint="restore it from a backup; without it no key of this factory works",
        ) from cause
    if mode & (stat.S_IRWXG | stat.S_IRWXO) or not pepper:
        raise LocalError(
            f"read {path}: it is empty or others may read it",
            hint=f"chmod 600 {path}, and issue new keys if others have read it",
        )
    return pepper


def stop_everything_local(data_dir: Path) -> int:
    """Stop every task the local engine still runs under a data directory; return how many.

    For `moulin down` when no control plane runs. Returns when each was asked to stop; a task whose
    shim was killed ends here, because observing it ends what is left of it.
    """
    engine: Engine = local_engine(data_dir, SystemClock(), 1, "node")
    steps: tuple[StepId, ...] = engine.steps() if isinstance(engine, ListsSteps) else ()
    running = [seen.step for seen in engine.observe(steps) if seen.phase not in ENDED_PHASES]
    for step in running:
        engine.stop(step, STOP_GRACE_S)
    return len(running)


def memory_limit_method() -> str:
    """Return how tasks' memory would be limited here: `cgroup-v2` or `rss-watch`."""
    base = find_cgroup_base()
    return "cgroup-v2" if base is not None and base.limits_memory else "rss-watch"


def boot_id() -> str:
    """Return this machine's boot id; empty where the kernel has none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
