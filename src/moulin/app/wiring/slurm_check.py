"""Checks a pool on Slurm from this machine, as its settings say, whether it was applied yet or not."""

import contextlib
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.app.wiring.slurm import goes_over_ssh, slurm_client, slurm_settings, slurm_transport
from moulin.app.wiring.slurm_mirror import Tenants, plan_mirror
from moulin.domain.errors import EngineError, EngineUnavailable, InUse, InvalidSpec
from moulin.domain.factory import Pool
from moulin.domain.finding import Finding, Verdict, fine, problem, unknown
from moulin.engines.slurm.accounts import project_account
from moulin.engines.slurm.checks import (
    check_accounting,
    check_commands,
    check_controller,
    check_directory,
    check_partition,
    check_submission,
    clear,
)
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.transport import SshTransport, Transport
from moulin.engines.slurm.trial import Trial, Way, trial_job
from moulin.engines.slurm.tunnel import LOOPBACK, Tunnel

LEAD_TRIES: Final = 5


def check_slurm(
    pool: Pool,
    tenants: Tenants,
    *,
    directory: Path,
    wait_s: float,
    say: Callable[[str], None],
) -> Generator[Finding, None, None]:
    """Yield what was found out about a pool, as it is found out.

    `directory` is for a pool that names none; `wait_s` is how long the one job may wait in the queue.
    Close the iterator to have that job cancelled.
    """
    try:
        check = _Check(pool, directory)
    except InvalidSpec as refusal:
        yield problem("settings", refusal.message, refusal.hint)
        return
    yield fine("settings", "all of them are understood")
    is_answered = yield from check.answers()
    account = (yield from check.account(tenants)) if is_answered else None
    yield from check.tries(account, wait_s, say)


class _Check:
    """One pool, as it is reached."""

    def __init__(self, pool: Pool, directory: Path) -> None:
        """Raise `InvalidSpec` for settings that cannot be."""
        self._pool = pool
        settings, self._words = slurm_settings(pool, directory)
        said = self._words[
            "directory"
        ]  # what is tried is what was written, not the pool's folder in it
        self._settings = replace(settings, directory=Path(said)) if said else settings
        is_over_ssh = goes_over_ssh(pool, self._words)
        self._client = slurm_client(pool, self._words, self._settings.directory)
        self._transport: Transport | None = None
        if isinstance(self._client, Commands):
            self._transport = slurm_transport(self._words)
            self._client = Commands(self._transport)
        self._way = _way(self._words, self._transport if is_over_ssh else None)

    def answers(self) -> Generator[Finding, None, bool]:
        """Yield whether Slurm answers, and what it says of itself; return whether it does."""
        transport = self._transport
        if transport is not None:
            found = check_commands(transport, self._words["ssh"])
            yield from found
            if not all(_is_fine(each) for each in found if each.name == "commands"):
                return False
        controller = check_controller(self._client)
        yield controller
        if not _is_fine(controller):
            return False
        yield from check_partition(self._client, transport, self._settings)
        if transport is not None:
            yield check_accounting(transport, self._settings)
        return True

    def account(self, tenants: Tenants) -> Generator[Finding, None, str | None]:
        """Return the account that a job is tried with; None when there is none yet."""
        if not self._settings.is_mirrored or self._transport is None:
            return self._settings.account
        try:
            tree, due = plan_mirror(self._pool, tenants, self._transport)
        except (EngineError, InUse, InvalidSpec) as failure:
            yield problem("mirror", failure.message, failure.hint)
            return None
        names = [project_account(each.name) for each in tenants.projects]
        known = [tree.accounts[name] for name in names if name in tree.accounts]
        usable = [each.name for each in known if tree.user in each.users and not each.is_closed]
        if due:
            hint = "`moulin cluster mirror --dry-run` shows them; without it they are made"
            yield problem("mirror", f"{len(due)} changes of Slurm's accounts are due", hint)
        elif not usable:
            hint = "declare a project, or give one money and run `moulin cluster mirror`"
            yield unknown("mirror", "no project has an account that takes jobs", hint)
        else:
            yield fine("mirror", f"{len(known)} projects have the accounts that they should have")
        return usable[0] if usable else None

    def tries(
        self, account: str | None, wait_s: float, say: Callable[[str], None]
    ) -> Iterator[Finding]:
        """Try the directory here and, with an account that may be empty, on a node."""
        job = trial_job(self._settings, account or "")
        is_taken = account is not None
        if is_taken and self._transport is not None:
            submission = check_submission(self._transport, job)
            is_taken = _is_fine(submission)
            yield submission
        here, made = check_directory(self._settings.directory, is_far=bool(self._words["ssh"]))
        try:
            yield here
            if made and is_taken:
                trial = Trial(self._client, self._settings, job, made[0], self._way)
                with contextlib.closing(trial.findings(wait_s, say)) as findings:
                    yield from findings
            elif made:
                yield unknown("job", "no node was looked at: no job can be submitted", "see above")
        finally:
            clear(made)


def _is_fine(finding: Finding) -> bool:
    return finding.verdict is Verdict.OK


def _way(words: Mapping[str, str], transport: Transport | None) -> Way:
    """Return how ports of nodes are reached: directly, or over the SSH connection that is given."""
    if not isinstance(transport, SshTransport):
        return Way("from here", bool(words["reach_replicas"]), _directly, _silently)
    tunnel = Tunnel(transport)
    return Way(
        f"over SSH to {tunnel.host}",
        is_wanted=True,
        lead=lambda host, port: _led(tunnel, _target(host, port)),
        why=lambda host, port: _why_not(tunnel, _target(host, port)),
    )


def _directly(host: str, port: int) -> tuple[str, int]:
    return host, port


def _silently(host: str, port: int) -> str:
    return ""


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _led(tunnel: Tunnel, target: str) -> tuple[str, int]:
    """Return the port of this machine that leads to HOST:PORT over there; raises `EngineUnavailable`."""
    for _ in range(LEAD_TRIES):
        with socket.socket() as found:
            found.bind((LOOPBACK, 0))
            port = int(found.getsockname()[1])
        if tunnel.carry(port, target):
            return LOOPBACK, port
    raise EngineUnavailable("no port of this machine is free", hint="see what listens here")


def _why_not(tunnel: Tunnel, target: str) -> str:
    """Find out on the other side why nothing came through."""
    try:
        is_reached = tunnel.is_reached_there(target)
    except EngineError as failure:
        return failure.message
    if is_reached is None:
        return "its sshd forwards no ports (`AllowTcpForwarding`), or it does not reach the node"
    if is_reached:
        return "its sshd forwards no ports there: it needs `AllowTcpForwarding` (`yes` or `local`)"
    return "the login node itself cannot connect to it: look for a firewall"
