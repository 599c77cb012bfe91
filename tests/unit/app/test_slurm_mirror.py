"""Which accounts in Slurm take no new jobs: those of projects without money, where a pool of that Slurm asks."""

from pathlib import Path

import pytest

from moulin.app.wiring.slurm import slurm_settings
from moulin.app.wiring.slurm_mirror import Tenants, closed_projects
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Pool, PoolMode


def pool(name, **settings):
    return Pool(
        name=name,
        zone="z",
        engine="slurm",
        machine_class="H100",
        mode=PoolMode.DELEGATED,
        settings={"directory": "/shared", **settings},
    )


ASKS = pool("asks", mirror="yes", mirror_budgets="yes")
BESIDE = pool("beside", mirror="yes", partition="short")
ELSEWHERE = pool("elsewhere", mirror="yes", ssh="login2")


@pytest.mark.parametrize(
    ("pools", "of", "closed"),
    [
        ([ASKS], ASKS, {"vision"}),
        ([BESIDE], BESIDE, set()),
        ([BESIDE, ASKS], BESIDE, {"vision"}),
        ([ELSEWHERE, ASKS], ELSEWHERE, set()),
        ([BESIDE, pool("no", mirror="yes", mirror_budgets="no")], BESIDE, set()),
    ],
)
def test_one_pool_asks_for_all_of_its_slurm(pools, of, closed):
    assert closed_projects(of, Tenants([], [], pools, frozenset({"vision"}))) == closed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mirror_budgets": "yes"}, "accounts that nobody mirrors"),
        ({"mirror": "yes", "mirror_budgets": "maybe"}, "mirror_budgets is 'maybe'"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, words):
    with pytest.raises(InvalidSpec, match=words):
        slurm_settings(pool("p", **settings), Path("/data"))
