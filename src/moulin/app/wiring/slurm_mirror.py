"""Makes Slurm's accounts as a factory's organisations and projects are, where a pool asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moulin.app.wiring.pool_settings import yes_or_no
from moulin.app.wiring.slurm import SLURM_SETTINGS, is_mirrored, slurm_transport
from moulin.domain.factory import Organisation, Pool, Project
from moulin.engines.slurm.accounts import Tree, changes, read_tree, run, wanted_accounts
from moulin.engines.slurm.transport import Transport

_ONE_SLURM: Final = ("ssh", "conf")


@dataclass(frozen=True, slots=True)
class Tenants:
    """Who uses a factory and its Slurm pools; projects of `spent` have used up their budget."""

    organisations: Sequence[Organisation]
    projects: Sequence[Project]
    pools: Sequence[Pool]
    spent: frozenset[str] = frozenset()


def closed_projects(pool: Pool, tenants: Tenants) -> frozenset[str]:
    """Return the projects whose account takes no new jobs now.

    Accounts are a cluster's and not a pool's: what one mirrored pool of it says holds for all of them.
    """
    alike = [each for each in tenants.pools if _place(each) == _place(pool)]
    is_wanted = any(
        is_mirrored(each) and yes_or_no(each, "mirror_budgets", default=False) for each in alike
    )
    return tenants.spent if is_wanted else frozenset()


def _place(pool: Pool) -> tuple[str, ...]:
    return tuple(pool.settings.get(name, "") for name in _ONE_SLURM)


def plan_mirror(
    pool: Pool, tenants: Tenants, transport: Transport
) -> tuple[Tree, tuple[tuple[str, ...], ...]]:
    """Return Slurm's accounts as they are, and the commands that make them as they should be.

    Raises `EngineRefused` where Slurm keeps no accounts, `EngineUnavailable` when it cannot be asked,
    `InUse` for an account that somebody else made, `InvalidSpec` for names that it cannot tell apart.
    """
    tree = read_tree(transport)
    wanted = wanted_accounts(
        tenants.organisations,
        tenants.projects,
        tree,
        root=pool.settings.get("mirror_root", "") or "root",
        qos=pool.settings.get("qos", ""),
        closed=closed_projects(pool, tenants),
    )
    return tree, changes(wanted, tree)


def mirror_slurm(pool: Pool, tenants: Tenants, *, is_dry_run: bool) -> tuple[tuple[str, ...], ...]:
    """Make Slurm's accounts as the factory's projects are; return the commands that it took.

    With `is_dry_run` Slurm is only asked. Raises `EngineRefused` where Slurm refuses a change, and
    what `plan_mirror` does.
    """
    transport = slurm_transport({name: pool.settings.get(name, "") for name in SLURM_SETTINGS})
    _, commands = plan_mirror(pool, tenants, transport)
    if not is_dry_run:
        run(transport, commands)
    return commands
