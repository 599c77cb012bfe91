"""Mirrors organisations and projects into Slurm's tree of accounts; touches none that it did not make.

`root > organisation > project > the user that submits`. What a project may hold at one time is the
`GrpTRES` of its account, so that Slurm holds it to that, whoever submits. Accounts made here say so in
their description. One whose project is gone is closed for new jobs and kept, for what it used is history;
so, where that is wanted, is one whose project has spent its budget, until there is money. Decisions 0037
and 0048.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.errors import EngineRefused, InUse, InvalidSpec
from moulin.domain.factory import Organisation, Project
from moulin.domain.slurmwords import parse_slurm_memory_bytes
from moulin.engines.slurm.transport import Transport

# Slurm keeps descriptions in small letters.
MARK: Final = "made by moulin"
GPUS: Final = "gres/gpu"
_MIB: Final = 1 << 20
_COUNTED: Final = ("cpu", "mem", GPUS)
_CLUSTER: Final = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
# No job is taken any more; what waits or runs stays as it is.
_CLOSE: Final = "GrpSubmitJobs=0"
_OPEN: Final = "GrpSubmitJobs=-1"
_OTHER: Final = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One account on one cluster; `limits` are CPUs, MiB and GPUs at one time, absent: none.

    `is_closed` says that it takes no new jobs; `users` are those who may submit to it.
    """

    name: str
    parent: str
    description: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    is_closed: bool = False
    qos: tuple[str, ...] = ()
    users: frozenset[str] = frozenset()

    @property
    def is_ours(self) -> bool:
        """Whether a mirror made it."""
        return self.description.startswith(MARK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Slurm's accounts as they are; `counted` are the resources that it counts, `user` who submits."""

    cluster: str
    user: str
    accounts: Mapping[str, Account]
    counted: frozenset[str]


def organisation_account(organisation: str) -> str:
    """Return the account of an organisation; Slurm writes accounts in small letters."""
    return f"moulin-org-{organisation}".lower()


def project_account(project: str) -> str:
    """Return the account of a project."""
    return f"moulin-project-{project}".lower()


def wanted_accounts(
    organisations: Sequence[Organisation],
    projects: Sequence[Project],
    tree: Tree,
    *,
    root: str = "root",
    qos: str = "",
    closed: Collection[str] = (),
) -> tuple[Account, ...]:
    """Return the accounts that should be, parents first; those of `closed` projects take no new jobs.

    Raises `InvalidSpec` when two names differ only in their letters' size.
    """
    titles = {each.name: each.title or each.name for each in organisations}
    owners = sorted({project.organisation for project in projects})
    levels = (qos,) if qos else ()
    found = [
        Account(
            name=organisation_account(owner),
            parent=root,
            description=_described(titles.get(owner, owner)),
            qos=levels,
        )
        for owner in owners
    ]
    found += [
        Account(
            name=project_account(project.name),
            parent=organisation_account(project.organisation),
            description=_described(project.name),
            limits=_limits(project, tree.counted),
            is_closed=project.name in closed,
            users=frozenset({tree.user}),
        )
        for project in sorted(projects, key=lambda each: each.name)
    ]
    names = [account.name for account in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidSpec(
            f"mirror accounts: two names would both be {twice}",
            hint="Slurm does not tell capital from small letters; rename one of them",
        )
    return tuple(found)


def changes(wanted: Sequence[Account], tree: Tree) -> tuple[tuple[str, ...], ...]:
    """Return the commands that make the tree as it is wanted, in order; none when it is.

    Raises `InUse` when an account of that name was made by somebody else.
    """
    commands: list[tuple[str, ...]] = []
    for account in wanted:
        known = tree.accounts.get(account.name)
        if known is not None and not known.is_ours:
            raise InUse(
                f"mirror accounts: {account.name} is there, and was not made by Moulin",
                hint="rename that account; it is left as it is",
            )
        if known is None:
            commands.append(_add(account, tree.cluster))
        elif words := _differences(account, known, tree.counted):
            commands.append(_modify(account.name, tree.cluster, words))
        missing = sorted(account.users - (known.users if known is not None else frozenset()))
        commands += [_add_user(user, account.name, tree.cluster) for user in missing]
    names = {account.name for account in wanted}
    commands += [
        _modify(name, tree.cluster, (_CLOSE,))
        for name, account in sorted(tree.accounts.items())
        if account.is_ours and name not in names and not account.is_closed
    ]
    return tuple(commands)


def read_tree(transport: Transport) -> Tree:
    """Ask Slurm for its accounts on this cluster.

    Raises `EngineRefused` where Slurm keeps none, `EngineUnavailable` when it cannot be asked.
    """
    found = _CLUSTER.search(_ask(transport, "scontrol", "show", "config"))
    if found is None:
        raise EngineRefused("mirror accounts: Slurm names no cluster", hint="look at slurm.conf")
    cluster, user = found[1].lower(), _ask(transport, "id", "-un").strip()
    show = ("sacctmgr", "-nP", "show")
    tres = _ask(transport, *show, "tres", "format=Type,Name").split()
    kinds = {line.rstrip("|").replace("|", "/") for line in tres}
    described = _ask(transport, *show, "account", "format=Account,Description")
    columns = "format=Account,ParentName,User,GrpTRES,GrpSubmit,QOS"
    rows = _ask(transport, *show, "assoc", f"cluster={cluster}", columns)
    return Tree(
        cluster=cluster,
        user=user,
        accounts=read_accounts(described, rows),
        counted=frozenset(kinds & set(_COUNTED)),
    )


def read_accounts(described: str, rows: str) -> dict[str, Account]:
    """Return accounts by name, from `show account` and `show assoc` with the columns above."""
    words = dict(line.partition("|")[::2] for line in described.splitlines())
    fields = [line.split("|") for line in rows.splitlines() if line.count("|") == 5]
    users: dict[str, set[str]] = {}
    for name, _, user, *_ in fields:
        users.setdefault(name, set()).update({user} - {""})
    return {
        name: Account(
            name=name,
            parent=parent,
            description=words.get(name, ""),
            limits=read_limits(tres),
            is_closed=submit == "0",
            qos=tuple(qos.split(",")) if qos else (),
            users=frozenset(users[name]),
        )
        for name, parent, user, tres, submit, qos in fields
        if not user
    }


def run(transport: Transport, commands: Sequence[Sequence[str]]) -> None:
    """Run commands in order; raises `EngineRefused` for the first that Slurm does not take."""
    for command in commands:
        _ask(transport, *command)


def _ask(transport: Transport, *words: str) -> str:
    answer = transport.run(words)
    if answer.status != 0:
        raise EngineRefused(
            f"{' '.join(words)}: {answer.words or f'status {answer.status}'}",
            hint="accounts need slurmdbd, and a user whom Slurm lets change them",
        )
    return answer.output.decode(errors="replace")


def _described(title: str) -> str:
    return f"{MARK}: {_OTHER.sub(' ', title.lower()).strip()}"


def _limits(project: Project, counted: frozenset[str]) -> dict[str, int]:
    quota = project.quota
    amounts = {
        "cpu": -(-quota.cpu_milli // 1000) if quota.cpu_milli >= 0 else -1,
        "mem": -(-quota.memory_bytes // _MIB) if quota.memory_bytes >= 0 else -1,
        GPUS: quota.accelerators,
    }
    return {name: count for name, count in amounts.items() if count >= 0 and name in counted}


def read_limits(written: str) -> dict[str, int]:
    """Return CPUs, MiB and GPUs of a list of TRES; others are left out.

    >>> read_limits("cpu=64,mem=1G,gres/gpu=4,node=2")
    {'cpu': 64, 'mem': 1024, 'gres/gpu': 4}
    """
    found: dict[str, int] = {}
    for part in written.split(","):
        name, _, amount = part.partition("=")
        if name == "mem":
            found[name] = parse_slurm_memory_bytes(amount) // _MIB
        elif name in _COUNTED and amount.isdigit():
            found[name] = int(amount)
    return found


def _grp_tres(limits: Mapping[str, int], names: Sequence[str]) -> str:
    units = {"mem": "M"}
    amounts = ((name, limits.get(name, -1)) for name in names)
    words = (f"{name}={n}{units.get(name, '') if n >= 0 else ''}" for name, n in amounts)
    return f"GrpTRES={','.join(words)}"


def _differences(account: Account, known: Account, counted: frozenset[str]) -> tuple[str, ...]:
    names = [name for name in _COUNTED if name in counted]
    words: list[str] = []
    if account.parent != known.parent:
        words.append(f"parent={account.parent}")
    if any(account.limits.get(name) != known.limits.get(name) for name in names):
        words.append(_grp_tres(account.limits, names))
    if account.qos and set(account.qos) != set(known.qos):
        words.append(f"qos={','.join(account.qos)}")
    if account.is_closed != known.is_closed:
        words.append(_CLOSE if account.is_closed else _OPEN)
    return tuple(words)


def _add(account: Account, cluster: str) -> tuple[str, ...]:
    words = [f"cluster={cluster}", f"parent={account.parent}"]
    words += [f"description={account.description}", "organization=moulin"]
    if account.limits:
        words.append(_grp_tres(account.limits, [n for n in _COUNTED if n in account.limits]))
    if account.qos:
        words.append(f"qos={','.join(account.qos)}")
    if account.is_closed:
        words.append(_CLOSE)
    return ("sacctmgr", "-i", "add", "account", account.name, *words)


def _add_user(user: str, account: str, cluster: str) -> tuple[str, ...]:
    return ("sacctmgr", "-i", "add", "user", user, f"cluster={cluster}", f"account={account}")


def _modify(name: str, cluster: str, words: Sequence[str]) -> tuple[str, ...]:
    where = ("where", f"name={name}", f"cluster={cluster}")
    return ("sacctmgr", "-i", "modify", "account", *where, "set", *words)
