"""Projects as accounts of a real Slurm with accounting: shown, made, held to, closed."""

import pytest

from tests.e2e.conftest import Shell

pytestmark = pytest.mark.slurm

FACTORY = """
organisations:
  lab: {{roles: [operator, tenant], title: The Lab}}
sites:
  here: {{country: FR}}
zones:
  hpc: {{site: here}}
pools:
  shared:
    zone: hpc
    engine: slurm
    machine_class: H100
    mode: delegated
    settings: {{conf: {conf}, poll_ms: 200, mirror: "yes"}}
projects:
  default: {{organisation: lab, quota: {{cpus: 2, accelerators: 1}}}}
{more}
"""


@pytest.fixture(scope="module")
def front(tmp_path_factory, accounted_cluster):
    opened = Shell(tmp_path_factory.mktemp("mirror"), is_inside=True)
    path = opened.folder / "factory.yaml"
    path.write_text(factory(accounted_cluster))
    opened.up("--factory", str(path))
    opened.until(lambda: len(opened.json("status")["nodes"]) == 2)
    yield opened
    opened.close()


def factory(cluster, more=""):
    return FACTORY.format(conf=cluster.environment["SLURM_CONF"], more=more)


def apply(front, text):
    path = front.folder / "factory.yaml"
    path.write_text(text)
    done = front.moulin("apply", str(path), "--yes")
    assert done.returncode == 0, done.stderr


def accounts(cluster):
    rows = cluster.run("sacctmgr", "-nP", "show", "assoc", "format=Account,GrpTRES,GrpSubmit,User")
    found = (line.split("|") for line in rows.splitlines())
    return {name: (tres, submit) for name, tres, submit, user in found if not user}


def test_a_mirror_is_shown_then_made_then_held_to(front, accounted_cluster):
    apply(front, factory(accounted_cluster, "  sound: {organisation: lab}"))
    before = accounts(accounted_cluster)
    shown = front.json("cluster", "mirror", "--dry-run")
    assert len(shown["commands"]) == 5  # three accounts, two users
    assert all(line.startswith("sacctmgr -i add ") for line in shown["commands"])
    assert accounts(accounted_cluster) == before

    assert front.json("cluster", "mirror")["commands"] == shown["commands"]
    made = accounts(accounted_cluster)
    assert made["moulin-project-default"] == ("cpu=2,gres/gpu=1", "")
    assert made["moulin-project-sound"] == ("", "")
    assert front.json("cluster", "mirror")["commands"] == []

    done = front.moulin("run", "--follow", "--", "sh", "-c", "echo $SLURM_JOB_ACCOUNT")
    assert done.stdout == "moulin-project-default\n"

    apply(front, factory(accounted_cluster).replace("cpus: 2", "cpus: 1"))
    after = front.json("cluster", "mirror")["commands"]
    assert [line.partition(" set ")[2] for line in after] == [
        *("GrpTRES=cpu=1,mem=-1,gres/gpu=1", "GrpSubmitJobs=0")
    ]
    assert accounts(accounted_cluster)["moulin-project-sound"] == ("", "0")


def test_an_account_that_somebody_else_made_stays_as_it_is(front, accounted_cluster):
    accounted_cluster.run("sacctmgr", "-i", "add", "account", "moulin-project-taken")
    apply(front, factory(accounted_cluster, "  taken: {organisation: lab}"))
    before = accounts(accounted_cluster)
    done = front.moulin("cluster", "mirror")
    assert done.returncode != 0
    assert "was not made by Moulin" in done.stderr
    assert accounts(accounted_cluster) == before
