"""Leases as people know them: offers, orders, who may log in, and where a lease stands.

A lease is a workload of whole nodes; what is here is derived from its row and decides nothing.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from moulin.domain.errors import InvalidSpec
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.views import WorkloadView
from moulin.domain.workload import (
    FINAL_WORKLOAD_STATES,
    LEASE_WARNING_S_DEFAULT,
    LeaseSpec,
    WorkloadState,
)

SSH_KEYS_MAX: Final = 100
SSH_KEY_CHARACTERS_MAX: Final = 8192
NODES_MAX: Final = 10_000
# The key types that present OpenSSH servers take; DSA and certificates are not among them.
_KEY_TYPES: Final = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
# They become words of an ssh: none may look like an option.
_LOGIN: Final = re.compile(
    r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9][A-Za-z0-9_.-]*):([0-9]{1,5})"
    r" ([A-Za-z_][A-Za-z0-9_.-]*) (ssh-ed25519 [A-Za-z0-9+/=]+)"
)
_NS_PER_S: Final = 10**9


class LeaseState(StrEnum):
    """Where a lease stands; EXPIRING is a delivered one whose end has been announced."""

    ORDERED = "ordered"
    DELIVERED = "delivered"
    EXPIRING = "expiring"
    RELEASED = "released"
    EXPIRED = "expired"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Where one logs in to a node, and the public half of the key by which it is known."""

    host: str
    port: int
    user: str
    host_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedNode:
    """One node of a lease; `login` is None until one can log in there."""

    rank: int
    node: str
    zone: str
    login: Login | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A lease. Times are ns UTC, 0 when not yet; it is billed from its start to its end, idle or not.

    `ends_at_ns` is when it expires unless it is extended or released before.
    """

    id: str
    name: str
    organisation: str
    project: str
    state: LeaseState
    nodes_wanted: int
    nodes: tuple[LeasedNode, ...]
    ordered_by: str
    ordered_at_ns: int
    started_at_ns: int
    ends_at_ns: int
    ended_at_ns: int
    time_limit_s: int
    warn_s: int
    reserved_neur: int
    spent_neur: int
    reasons: tuple[Reason, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePage:
    """Leases, newest first; `next` is the cursor to ask with, empty at the end."""

    items: tuple[LeaseView, ...]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffer:
    """Nodes of one class in one zone that may be leased whole: `nodes` in all, `free` of them now.

    Sizes are those of the smallest. `node_hour_neur` is the price of an hour of that node as the price
    book has it for what the node holds; None where nothing of it has a price.
    """

    name: str
    zone: str
    country: str
    machine_class: str
    nodes: int
    free: int
    cpu_milli: int
    memory_bytes: int
    accelerators: int = 0
    accelerator_class: str = ""
    node_hour_neur: int | None = None
    price_book: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffers:
    """What a project may lease, by name."""

    items: tuple[LeaseOffer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseWanted:
    """An order: `nodes` nodes of an offer for `time_limit_s`; 0 nodes mean all that the offer has."""

    offer: str
    time_limit_s: int
    ssh_keys: tuple[str, ...]
    name: str = "lease"
    nodes: int = 1
    warn_s: int = LEASE_WARNING_S_DEFAULT
    priority: int = 50
    labels: Mapping[str, str] = field(default_factory=dict)
    is_notified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendWanted:
    """How much later a lease is to end."""

    by_s: int


def check_ssh_key(text: str) -> str:
    """Return a public key as `type base64 comment`, or raise `InvalidSpec` for what is none.

    Options before the type are refused: they would be the server's to set.

    >>> check_ssh_key(" ssh-ed25519  AAAAC3NzaC1lZDI1NTE5AAAAIA== ada@mill ")
    'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== ada@mill'
    """
    words = text.split()
    kind, data = (*words, "", "")[:2]
    problem = ""
    if not text.isprintable() or len(text) > SSH_KEY_CHARACTERS_MAX:
        problem = "it is not one line of text"
    elif kind not in _KEY_TYPES:
        problem = f"it does not begin with one of {', '.join(_KEY_TYPES)}"
    elif not _is_blob_of(kind, data):
        problem = f"what follows {kind} is not such a key"
    if problem:
        raise InvalidSpec(
            f"read an SSH public key: {problem}",
            hint="give the one line of a file like ~/.ssh/id_ed25519.pub, never the private half",
        )
    return " ".join((kind, data, *words[2:]))


def checked_lease(lease: LeaseSpec, time_limit_s: int) -> LeaseSpec:
    """Return a lease whose keys are keys, each once and in one form.

    Raises `InvalidSpec` for keys that are none, none at all, or a lease without an end.
    """
    keys = tuple(dict.fromkeys(check_ssh_key(key) for key in lease.ssh_keys))
    if not 1 <= len(keys) <= SSH_KEYS_MAX:
        raise InvalidSpec(
            f"lease nodes to the holders of {len(keys)} SSH keys",
            hint=f"give 1 to {SSH_KEYS_MAX} public keys",
        )
    if time_limit_s <= 0:
        raise InvalidSpec("lease nodes without an end", hint="say for how long, as in --time 2h")
    return replace(lease, ssh_keys=keys)


def read_login(address: str) -> Login | None:
    """Return where one logs in, from what a task on a leased node says of itself."""
    found = _LOGIN.fullmatch(address)
    if found is None:
        return None
    return Login(host=found[1].strip("[]"), port=int(found[2]), user=found[3], host_key=found[4])


def lease_view(view: WorkloadView, now_ns: int) -> LeaseView:
    """Return a lease's row as its tenant knows it at `now_ns`."""
    lease, limit_s = view.spec.lease, view.spec.time_limit_s
    is_over = view.state in FINAL_WORKLOAD_STATES
    nodes = tuple(
        LeasedNode(
            rank=task.rank,
            node=task.node,
            zone=task.zone,
            login=None if is_over else read_login(task.address),
        )
        for unit in view.units
        for task in unit.tasks
    )
    ends_at_ns = view.started_at_ns + limit_s * _NS_PER_S if view.started_at_ns else 0
    warn_s = min(lease.warn_s if lease is not None else 0, limit_s // 4)
    return LeaseView(
        id=view.id,
        name=view.name,
        organisation=view.organisation,
        project=view.project,
        state=_state_of(view, nodes, is_announced=ends_at_ns - warn_s * _NS_PER_S <= now_ns),
        nodes_wanted=view.spec.nodes,
        nodes=nodes,
        ordered_by=view.submitted_by,
        ordered_at_ns=view.submitted_at_ns,
        started_at_ns=view.started_at_ns,
        ends_at_ns=ends_at_ns,
        ended_at_ns=view.ended_at_ns,
        time_limit_s=limit_s,
        warn_s=warn_s,
        reserved_neur=view.reserved_neur,
        spent_neur=view.spent_neur,
        reasons=view.reasons,
        labels=view.spec.labels,
    )


def _state_of(
    view: WorkloadView, nodes: tuple[LeasedNode, ...], *, is_announced: bool
) -> LeaseState:
    if view.state not in FINAL_WORKLOAD_STATES:
        is_open = nodes and all(node.login is not None for node in nodes)
        if view.state != WorkloadState.RUNNING or not is_open:
            return LeaseState.ORDERED
        return LeaseState.EXPIRING if is_announced else LeaseState.DELIVERED
    if view.state == WorkloadState.REFUSED:
        return LeaseState.REFUSED
    if any(reason.code is ReasonCode.TIME_LIMIT_REACHED for reason in view.reasons):
        return LeaseState.EXPIRED
    return LeaseState.FAILED if view.state == WorkloadState.FAILED else LeaseState.RELEASED


def _is_blob_of(kind: str, data: str) -> bool:
    """Whether base64 text holds a key that names its type as OpenSSH's blobs do."""
    try:
        blob = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    name = kind.encode()
    return blob.startswith(len(name).to_bytes(4) + name) and len(blob) > 4 + len(name)
