"""Equal logs give the same state, plan and events in any process, whatever its hash seed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STORY = """
from moulin.domain.events import WorkloadStopRequested
from moulin.domain.factory import Organisation, Pool, Project, Quota, Site, Zone
from moulin.domain.ids import WorkloadId
from moulin.domain.workload import Retry, Where
from moulin.scheduler import explain, live_steps, plan_digest
from moulin.scheduler.digest import digest_of
from tests.unit.scheduler.world import SECOND, endpoint, job, node, world

here = world(*(node(f"n{i}", cpus=2 + i % 7, devices=i % 3) for i in range(20)), more=(
    Organisation(name="acme", countries=("FR", "SE", "FI")),
    Site(name="lyon", country="FR", power_envelope_w=5000), Site(name="lulea", country="SE"),
    *(Zone(name=name, site="lulea") for name in "bcde"),
    *(Pool(name=f"p{name}", zone=name, engine="local", machine_class="m") for name in "bcde"),
    Project(name="small", organisation="acme", quota=Quota(cpu_milli=7000)),
))
for name in "bcde":
    here.join(*(node(f"{name}{i}", idle_mw=9, peak_mw=99) for i in range(5)), pool=f"p{name}")
digests = []
for round in range(12):
    here.submit(f"j{round:02}", job(1 + round % 4, nodes=1 + round % 5, priority=round % 3,
        where=Where(countries=("SE", "FR")), retry=Retry(attempts_max=2)))
    here.submit(f"e{round:02}", endpoint(1 + round % 3), project="small")
    if round % 5 == 4:
        here.add(WorkloadStopRequested(workload=WorkloadId(f"e{round - 1:02}"), by="ada"))
    digests.append(plan_digest(here.cycle()))
    for index, (step, _) in enumerate(list(live_steps(here.state))):
        if index % 3 == round % 3:
            here.run(step)
        elif index % 4 == 0:
            here.exit(step, index % 2)
    here.now_ns += SECOND
reasons = {w: explain(here.state, w, here.now_ns, here.policy) for w in here.state.workloads}
print(len(here.log), here.state.digest(), digest_of(digests), digest_of(reasons))
"""


def run(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STORY],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_hash_seeds_change_nothing():
    first = run("0")
    assert int(first.split()[0]) > 100
    assert {run(seed) for seed in ("1", "42", "4294967295")} == {first}
