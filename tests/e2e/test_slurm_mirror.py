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
prices:
  list: {{cpu_hour: 36}}
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


@pytest.fixture(autouse=True)
def nothing_mirrored(accounted_cluster):
    """Let each test begin without accounts of a mirror, whichever came before."""
    yield
    made = [name for name in accounts(accounted_cluster) if name.startswith("moulin-")]
    for name in sorted(made, reverse=True):  # projects before the organisations above them
        accounted_cluster.run("sacctmgr", "-i", "delete", "account", name)
    assert not any(name.startswith("moulin-") for name in accounts(accounted_cluster))


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

    checked = front.json("cluster", "check", "shared")["pools"]["shared"]
    words = {each["name"]: each["message"] for each in checked}
    assert words["mirror"] == "2 projects have the accounts that they should have"
    assert words["submission"].startswith("Slurm takes a small job with account moulin-project-")
    assert words["accounting"] == "slurmdbd answers; enforced: associations,limits"
    done = front.moulin("run", "--follow", "--", "sh", "-c", "echo $SLURM_JOB_ACCOUNT")
    assert done.stdout == "moulin-project-default\n"

    apply(front, factory(accounted_cluster).replace("cpus: 2", "cpus: 1"))
    after = front.json("cluster", "mirror")["commands"]
    assert [line.partition(" set ")[2] for line in after] == [
        *("GrpTRES=cpu=1,mem=-1,gres/gpu=1", "GrpSubmitJobs=0")
    ]
    assert accounts(accounted_cluster)["moulin-project-sound"] == ("", "0")


def around(cluster):
    """Submit to the project's account without Moulin; return the job, empty when Slurm refuses it."""
    words = ("--parsable", "--account=moulin-project-default", "--output=/dev/null", "--wrap=true")
    return cluster.run("sbatch", *words)


def test_an_account_whose_budget_is_spent_takes_no_new_jobs_until_there_is_money(
    front, accounted_cluster
):
    def budgeted(budget, asks="yes"):
        text = factory(accounted_cluster).replace("lab, quota", f"lab, budget: {budget}, quota")
        apply(front, text.replace('mirror: "yes"', f'mirror: "yes", mirror_budgets: "{asks}"'))

    budgeted("100")
    front.json("cluster", "mirror")
    job = ("run", "--follow", "--time-limit", "10s", "--", "sleep", "1")
    assert front.moulin(*job).returncode == 0
    assert around(accounted_cluster)
    front.until(lambda: front.json("status")["balances"][0]["spent_neur"] != "0")

    budgeted("0.000001")
    shown = front.json("cluster", "mirror", "--dry-run")
    closing = (
        "sacctmgr -i modify account where name=moulin-project-default cluster=mill set"
        " GrpSubmitJobs=0"
    )
    assert (shown["commands"], shown["spent"]) == ([closing], ["default"])
    assert around(accounted_cluster)
    assert front.json("cluster", "mirror")["commands"] == [closing]
    front.until(lambda: around(accounted_cluster) == "")  # a thread of slurmctld hears of it
    again = front.moulin("cluster", "mirror")
    assert (again.stdout, "budget is spent: default" in again.stderr) == (
        "nothing to change\n",
        True,
    )
    refused = front.moulin(*job)
    assert refused.returncode != 0
    assert "budget" in refused.stderr

    budgeted("100")
    opening = front.json("cluster", "mirror")
    assert opening["commands"] == [closing.replace("=0", "=-1")]
    assert opening["spent"] == []
    front.until(lambda: around(accounted_cluster) != "")
    assert front.moulin(*job).returncode == 0

    budgeted("0.000001", asks="no")
    assert front.json("cluster", "mirror")["commands"] == []


def test_an_account_that_somebody_else_made_stays_as_it_is(front, accounted_cluster):
    accounted_cluster.run("sacctmgr", "-i", "add", "account", "moulin-project-taken")
    apply(front, factory(accounted_cluster, "  taken: {organisation: lab}"))
    before = accounts(accounted_cluster)
    done = front.moulin("cluster", "mirror")
    assert done.returncode != 0
    assert "was not made by Moulin" in done.stderr
    assert accounts(accounted_cluster) == before
