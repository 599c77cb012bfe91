"""Pools that other systems run: settings are checked by name, and no machine is counted twice."""

import pytest

from moulin.app.clock import SystemClock
from moulin.app.wiring.engines import EngineBook
from moulin.app.wiring.slurm import SLURM_SETTINGS, SlurmWays
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Pool, PoolMode
from moulin.ports.engine import Forgets, ListsSteps

CLUSTERS = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: me}}]
clusters: [{name: here, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: me, user: {token: a-token}}]
"""


def pool(name: str, engine: str, mode: PoolMode = PoolMode.OWNED, /, **settings: str) -> Pool:
    return Pool(
        name=name, zone="z", engine=engine, machine_class="box", mode=mode, settings=settings
    )


@pytest.mark.parametrize("engine", ["ray", "kubernetes"])
def test_a_pool_has_the_engine_it_names(tmp_path, engine):
    config = tmp_path / "kubeconfig"
    config.write_text(CLUSTERS)
    words = {"kubeconfig": str(config)} if engine == "kubernetes" else {}
    made = EngineBook(tmp_path, SystemClock()).engine_for(pool("p", engine, **words))
    assert isinstance(made, ListsSteps)
    assert isinstance(made, Forgets)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (pool("p", "ray", adress="http://h:1"), "no setting 'adress'"),
        (pool("p", "ray", PoolMode.DELEGATED), "is owned"),
        (pool("p", "ray", address="h:8265"), "`address` is 'h:8265'"),
        (pool("p", "ray", agent_port="one"), "agent_port is 'one'"),
        (pool("p", "slurm", control_url="login1:8700"), "control_url 'login1:8700'"),
        (pool("p", "slurm", control_url="https://login1/api"), "no address of a control plane"),
        (pool("p", "slurm", replica_time_limit="long"), "long"),
        (pool("p", "slurm", read_nodes="maybe"), "read_nodes is 'maybe'"),
        (pool("p", "slurm", ssh="login1", reach_replicas="tunnel"), "reach_replicas is 'tunnel'"),
        (pool("p", "slurm", reach_replicas="ssh"), "needs the pool's SSH connection"),
        (pool("p", "kubernetes", name_space="n"), "no setting 'name_space'"),
        (pool("p", "kubernetes", PoolMode.DELEGATED), "is owned"),
    ],
)
def test_settings_that_cannot_be(tmp_path, wrong, words):
    with pytest.raises(InvalidSpec, match=words):
        EngineBook(tmp_path, SystemClock()).engine_for(wrong)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (pool("a", "ray"), pool("b", "ray"), True),
        (pool("a", "ray", address="http://h:1"), pool("b", "ray", address="http://i:1"), False),
        (pool("a", "kubernetes"), pool("b", "kubernetes"), True),
        (pool("a", "kubernetes"), pool("b", "kubernetes", selector="gpu=yes"), False),
        (pool("a", "ray"), pool("b", "kubernetes"), False),
        (pool("a", "simulated"), pool("b", "simulated"), False),
    ],
)
def test_no_machine_is_counted_twice(one, other, is_same):
    if is_same:
        with pytest.raises(InvalidSpec, match="connect pools a, b"):
            EngineBook.check_pools([one, other])
    else:
        EngineBook.check_pools([one, other])


REST = {"rest": "http://127.0.0.1:1", "rest_user": "ann", "rest_token": "token"}
FIRECREST = {
    "firecrest": "http://127.0.0.1:1",
    "firecrest_system": "s",
    "rest_token": "token",
    "node_memory": "1GB",
    "partition": "p",
}


@pytest.mark.parametrize(
    ("common", "other", "is_shared"),
    [
        ({}, {"partition": "q", "poll_ms": "10", "account": "a", "qos": "fast"}, True),
        ({}, {"conf": "/etc/other.conf"}, False),
        ({}, {"bin": "/opt/slurm/bin"}, False),
        ({"ssh": "login1"}, {"partition": "q", "reach_replicas": "ssh"}, True),
        ({"ssh": "login1"}, {"ssh": "login2"}, False),
        (REST, {"partition": "q"}, True),
        (REST, {"rest_user": "bob"}, False),
        (FIRECREST, {"partition": "q"}, False),
    ],
)
def test_pools_that_reach_slurm_in_the_same_way_share_it(tmp_path, common, other, is_shared):
    ways = SlurmWays(tmp_path)
    pools = [
        pool(name, "slurm", PoolMode.DELEGATED, **words)
        for name, words in (("a", common), ("b", {**common, **other}))
    ]
    one, two = (
        ways.way(
            each,
            {name: each.settings.get(name, "") for name in SLURM_SETTINGS},
            tmp_path / each.name,
        )
        for each in pools
    )
    assert (one is two) is is_shared
    assert (one.readings is two.readings) is is_shared
