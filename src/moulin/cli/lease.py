"""Commands about leases: what may be leased, orders, logins, ends that are put off or brought forward."""

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moulin.cli.screen import answer, say, sentences, table, write, write_json
from moulin.cli.session import Data, IsJson, Project, Word, connect, find_workload
from moulin.domain.errors import Conflict, InvalidRequest, NotFound

if TYPE_CHECKING:
    from moulin.domain.lease import LeasedNode, LeaseOffer, LeaseView, Login
    from moulin.sdk import Moulin

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Whole machines for a time, with a login."
)
OWN_KEYS: Final = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")
DELIVERED: Final = ("delivered", "expiring")
Time = Annotated[
    str, typer.Option("--time", metavar="TIME", help="How long, from its delivery on (2h, 3d).")
]
Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Public SSH key that may log in; may be repeated (yours in ~/.ssh).",
    ),
]
Rank = Annotated[int, typer.Option("--rank", min=0, help="Which of its nodes, from 0 on.")]


@app.command()
def offers(is_json: IsJson = False, data: Data = None, project: Project = "") -> None:
    """Say which machines may be leased whole, how many are free, and what an hour costs."""
    with connect(data, project) as client:
        found = client.leases.offers(project)
    answer(found, is_json=is_json, show=lambda: _show_offers(found))


@app.command()
def order(
    offer: Annotated[str, typer.Argument(metavar="OFFER", help="As `moulin lease offers` has it.")],
    time: Time = "1h",
    *,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="How many.")] = 1,
    whole: Annotated[
        bool, typer.Option("--whole", help="All nodes of the offer, as of a rack.")
    ] = False,
    name: Annotated[str, typer.Option("--name", help="What to call it.")] = "lease",
    key: Keys = None,
    warn: Annotated[
        str, typer.Option("--warn", metavar="TIME", help="Say so on its terminals so long before.")
    ] = "15m",
    notify: Annotated[bool, typer.Option("--notify", help="Tell the project's webhook.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when one can log in.")] = False,
    is_json: IsJson = False,
    data: Data = None,
    project: Project = "",
) -> None:
    """Order machines: nobody else is put there, and they are billed whole until they are released."""
    from moulin.domain.lease import LeaseWanted
    from moulin.domain.units import parse_duration_s

    wanted = LeaseWanted(
        offer=offer,
        time_limit_s=parse_duration_s(time),
        ssh_keys=tuple(_public_keys(key or [])),
        name=name,
        nodes=0 if whole else nodes,
        warn_s=parse_duration_s(warn),
        is_notified=notify,
    )
    with connect(data, project) as client:
        found = client.leases.order(wanted, project=project)
        if wait:
            found = client.leases.wait(found.id)
    answer(found, is_json=is_json, show=lambda: _show(found))
    if wait and found.state not in DELIVERED:
        raise typer.Exit(1)


@app.command("list")
def list_leases(is_json: IsJson = False, data: Data = None, project: Project = "") -> None:
    """List leases, newest first."""
    with connect(data, project) as client:
        found = tuple(client.leases.every(project=project))
    answer(found, is_json=is_json, show=lambda: _show_list(found))


@app.command()
def show(word: Word, is_json: IsJson = False, data: Data = None, project: Project = "") -> None:
    """Show one lease: its nodes, where one logs in, when it ends and what it cost so far."""
    with connect(data, project) as client:
        found = _find(client, word)
    answer(found, is_json=is_json, show=lambda: _show(found))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ssh(
    context: typer.Context,
    word: Word,
    *,
    rank: Rank = 0,
    identity: Annotated[
        Path | None, typer.Option("--identity", metavar="FILE", help="The private key to use.")
    ] = None,
    is_json: IsJson = False,
    data: Data = None,
    project: Project = "",
) -> None:
    """Log in to a node, or run what follows there; its host key is checked, and nothing is asked.

    With --json only say how: the words of the command, and a line for a known_hosts file.
    """
    with connect(data, project) as client:
        login = _login(_find(client, word), rank)
    line = f"[{login.host}]:{login.port} {login.host_key}\n"
    given = ("-i", str(identity), "-o", "IdentitiesOnly=yes") if identity is not None else ()
    target = (*given, "-p", str(login.port), f"{login.user}@{login.host}")
    if is_json:
        write_json({"command": ["ssh", *target], "known_hosts": line.strip()})
        return
    with tempfile.NamedTemporaryFile("w", prefix="moulin-known-hosts-") as known:
        known.write(line)
        known.flush()
        trust = ("-o", f"UserKnownHostsFile={known.name}", "-o", "StrictHostKeyChecking=yes")
        status = _run(("ssh", *trust, *target, *context.args))
    if status:
        raise typer.Exit(status)


@app.command()
def extend(
    word: Word,
    time: Annotated[str, typer.Argument(metavar="TIME", help="How much later it ends (2h).")],
    is_json: IsJson = False,
    data: Data = None,
    project: Project = "",
) -> None:
    """Let a lease end later, or say why not: others wait for its nodes, a quota, the budget."""
    from moulin.domain.units import parse_duration_s

    by_s = parse_duration_s(time)
    with connect(data, project) as client:
        found = client.leases.extend(_find(client, word).id, by_s)
    answer(found, is_json=is_json, show=lambda: _show(found))


@app.command()
def release(word: Word, is_json: IsJson = False, data: Data = None, project: Project = "") -> None:
    """Give the nodes back now: what runs there is ended, and so is the bill."""
    with connect(data, project) as client:
        found = client.leases.release(_find(client, word).id)
    answer(found, is_json=is_json, show=lambda: say(f"{found.id} ({found.name}) is given back"))


def _find(client: "Moulin", word: str) -> "LeaseView":
    return client.leases.get(find_workload(client, word, kind="lease").id)


def _login(lease: "LeaseView", rank: int) -> "Login":
    if lease.state not in DELIVERED:
        raise Conflict(
            f"log in to {lease.id}: it is {lease.state}",
            hint=f"`moulin why {lease.id}` says what it waits for",
        )
    for node in lease.nodes:
        if node.rank == rank and node.login is not None:
            return node.login
    raise NotFound(f"log in to node {rank} of {lease.id}: it has {len(lease.nodes)}")


def _run(command: tuple[str, ...]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError as cause:
        raise NotFound(
            "log in: there is no ssh here",
            hint=f"install openssh-client, or elsewhere: {shlex.join(command)}",
        ) from cause


def _public_keys(files: list[Path]) -> list[str]:
    """Return the keys of files, one a line; without files the first of this user's usual ones."""
    from moulin.domain.lease import check_ssh_key

    own = [Path.home() / ".ssh" / name for name in OWN_KEYS]
    chosen = files or [path for path in own if path.is_file()][:1]
    if not chosen:
        raise InvalidRequest(
            "lease machines to nobody: there is no public key in ~/.ssh",
            hint="make one with `ssh-keygen -t ed25519`, or name a file with --key",
        )
    keys: list[str] = []
    for path in chosen:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as cause:
            raise InvalidRequest(f"read the key in {path}: {cause}") from cause
        keys += [check_ssh_key(line) for line in lines if line.strip() and not line.startswith("#")]
    return keys


def _show_offers(items: "tuple[LeaseOffer, ...]") -> None:
    from moulin.domain.words import cpus, memory

    table(
        ("offer", "country", "nodes>", "free>", "cpus>", "memory>", "accelerators", "node-hour>"),
        (
            (
                *(each.name, each.country or "-", str(each.nodes), str(each.free)),
                *(cpus(each.cpu_milli), memory(each.memory_bytes)),
                f"{each.accelerators} × {each.accelerator_class}" if each.accelerators else "-",
                _euros(each.node_hour_neur),
            )
            for each in items
        ),
        empty="nothing may be leased here",
    )


def _show_list(items: "tuple[LeaseView, ...]") -> None:
    table(
        ("id", "name", "state", "nodes", "ends", "spent>"),
        (
            (
                *(each.id, each.name, each.state.value),
                ", ".join(node.node for node in each.nodes) or f"{each.nodes_wanted} wanted",
                _moment(each.ended_at_ns or each.ends_at_ns),
                _euros(each.spent_neur),
            )
            for each in items
        ),
        empty="no leases",
    )


def _show(lease: "LeaseView") -> None:
    write(f"{lease.id} ({lease.name}) is {lease.state.value}")
    for line in sentences(list(lease.reasons)):
        write(f"  {line}")
    for node in lease.nodes:
        write(f"  {_place(node, is_over=bool(lease.ended_at_ns))}")
    if lease.ended_at_ns:
        write(f"  ended {_moment(lease.ended_at_ns)}; {_euros(lease.spent_neur)} charged so far")
    elif lease.ends_at_ns:
        write(f"  ends {_moment(lease.ends_at_ns)}; {_euros(lease.spent_neur)} charged so far")


def _place(node: "LeasedNode", *, is_over: bool) -> str:
    if node.login is None:
        words = "given back" if is_over else "not open yet"
        return f"{node.rank}: {node.node} in {node.zone}, {words}"
    login = node.login
    return f"{node.rank}: {node.node} in {node.zone}, ssh -p {login.port} {login.user}@{login.host}"


def _moment(at_ns: int) -> str:
    from moulin.domain.words import moment

    return moment(at_ns) if at_ns else "-"


def _euros(amount_neur: int | None) -> str:
    from moulin.domain.words import euros

    return "no price" if amount_neur is None else euros(amount_neur)
