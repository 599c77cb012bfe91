"""Writes organisations and projects from Slurm's tree of accounts; asks nothing and changes nothing.

An account below `root` is an organisation, and each account that has users is a project of the one it is
under. A project may hold at one time what its account and all above it may. What has no form in an
operator file (minutes, wall times, QoS, limits of single users) stands in it as a comment.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.errors import InvalidSpec
from moulin.engines.slurm.accounts import GPUS, read_limits

ASSOCIATIONS: Final = (
    *("sacctmgr", "-P", "show", "assoc"),
    "format=Account,ParentName,User,GrpTRES,GrpTRESMins,GrpJobs,MaxWall,MaxJobs,QOS",
)
LEVELS: Final = ("sacctmgr", "-P", "show", "qos", "format=Name,MaxWall,GrpTRES,MaxTRESPU,MaxJobsPU")
_ROOT: Final = "root"
_MIRRORED: Final = re.compile(r"moulin-(org|project)-")
# Column -> what it is called where it cannot become more than a comment.
_SAID: Final = {
    "GrpTRESMins": "GrpTRESMins",
    "MaxWall": "MaxWall",
    "QOS": "QoS",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmAccount:
    """One account as Slurm has it; `limits` as in `moulin.engines.slurm.accounts`, `said` as printed.

    `jobs` is how many may run at once, -1 for any; `limited_users` have limits of their own.
    """

    name: str
    parent: str
    limits: Mapping[str, int] = field(default_factory=dict)
    jobs: int = -1
    said: Mapping[str, str] = field(default_factory=dict)
    users: tuple[str, ...] = ()
    limited_users: int = 0


def read_associations(text: str) -> tuple[SlurmAccount, ...]:
    """Return the accounts in the output of `sacctmgr -P show assoc`, columns in any order.

    Order:  by name. Raises `InvalidSpec` where the columns Account, ParentName or User are not there.
    """
    rows = _rows(text, ("Account", "ParentName", "User"))
    users: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if row["User"]:
            users.setdefault(row["Account"], []).append(row)
    found = {
        row["Account"]: SlurmAccount(
            name=row["Account"],
            parent=row["ParentName"],
            limits=read_limits(row.get("GrpTRES", "")),
            jobs=_count(row.get("GrpJobs", "")),
            said={title: row[key] for key, title in _SAID.items() if row.get(key)},
            users=tuple(sorted({each["User"] for each in users.get(row["Account"], ())})),
            limited_users=sum(_is_limited(each) for each in users.get(row["Account"], ())),
        )
        for row in rows
        if not row["User"]
    }
    return tuple(found[name] for name in sorted(found))


def tenants_of(accounts: Sequence[SlurmAccount]) -> list[str]:
    """Return the lines that declare organisations and projects; none where no account has users.

    Accounts that a mirror made are left out.
    """
    by_name = {each.name: each for each in accounts if not _MIRRORED.match(each.name)}
    chains = {name: _chain(each, by_name) for name, each in by_name.items()}
    projects = [each for each in by_name.values() if each.users and each.name != _ROOT]
    if not projects:
        return []
    owners = sorted({chains[each.name][-1].name for each in projects})
    lines = ["organisations:", *(f"  {name_of(owner)}: {{roles: [tenant]}}" for owner in owners)]
    lines += [
        "",
        "# Of each account with users. `budget: 5000` (euros) holds a project to that, and",
        "# `moulin keys create --project NAME` makes a key for its people.",
        "projects:",
    ]
    for each in projects:
        chain = chains[each.name]
        lines += [f"  # {'; '.join(_remarks(each, chain))}", _project(each, chain)]
    return [*lines, ""]


def levels_of(text: str) -> list[str]:
    """Return a comment for each QoS that limits anything, from `sacctmgr -P show qos`."""
    lines = []
    for row in _rows(text, ("Name",)):
        limits = [f"{key} {value}" for key, value in row.items() if value and key != "Name"]
        if limits:
            lines.append(f"# QoS {row['Name']}: {', '.join(limits)}")
    if lines:
        lines.append(
            "# The setting `qos` of a pool names the one that its jobs are submitted with."
        )
    return lines


def name_of(written: str) -> str:
    """Return a name that an operator file may hold."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in written)
    return kept.strip("._-")[:63] or "unnamed"


def _chain(account: SlurmAccount, by_name: Mapping[str, SlurmAccount]) -> list[SlurmAccount]:
    """Return an account and those above it, without the root; the last is below it."""
    chain = [account]
    while (above := by_name.get(chain[-1].parent)) is not None and above.name != _ROOT:
        if above in chain:
            break
        chain.append(above)
    return chain


def _project(account: SlurmAccount, chain: Sequence[SlurmAccount]) -> str:
    words = [f"organisation: {name_of(chain[-1].name)}"]
    quota = list(_quota(chain))
    if quota:
        words.append(f"quota: {{{', '.join(quota)}}}")
    return f"  {name_of(account.name)}: {{{', '.join(words)}}}"


def _quota(chain: Sequence[SlurmAccount]) -> Iterator[str]:
    """Yield the least of each limit along a chain of accounts."""
    for tres, form in (("cpu", "cpus: {}"), ("mem", "memory: {}MiB"), (GPUS, "accelerators: {}")):
        limits = [each.limits[tres] for each in chain if tres in each.limits]
        if limits:
            yield form.format(min(limits))
    jobs = [each.jobs for each in chain if each.jobs >= 0]
    if jobs:
        yield f"workloads: {min(jobs)}"


def _remarks(account: SlurmAccount, chain: Sequence[SlurmAccount]) -> Iterator[str]:
    count = len(account.users)
    yield f"{count} user{'s' if count != 1 else ''}"
    shared = [each.name for each in chain[1:] if each.limits or each.jobs >= 0]
    if shared:
        yield f"shares the limits of {', '.join(shared)} with others, which no quota says"
    for title, value in account.said.items():
        yield f"{title} {value}"
    if account.limited_users:
        yield f"{account.limited_users} of them have limits of their own"


def _is_limited(row: Mapping[str, str]) -> bool:
    return any(row.get(key) for key in ("GrpTRES", "GrpTRESMins", "GrpJobs", "MaxWall", "MaxJobs"))


def _count(written: str) -> int:
    return int(written) if written.isdigit() else -1


def _rows(text: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table whose first line names its columns."""
    lines = [line for line in text.splitlines() if "|" in line]
    header = lines[0].rstrip("|").split("|") if lines else []
    missing = [name for name in needed if name not in header]
    if missing:
        raise InvalidSpec(
            f"read Slurm's accounts: there is no column {', '.join(missing)}",
            hint=f"give the output of `{' '.join(ASSOCIATIONS)}`",
        )
    return [dict(zip(header, line.split("|"), strict=False)) for line in lines[1:]]
