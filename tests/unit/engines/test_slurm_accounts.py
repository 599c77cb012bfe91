"""The tree of accounts: which commands make Slurm's the factory's, and which accounts are left alone."""

import pytest

from moulin.domain.errors import InUse, InvalidSpec
from moulin.domain.factory import Organisation, Project, Quota
from moulin.engines.slurm.accounts import (
    Tree,
    changes,
    organisation_account,
    project_account,
    read_accounts,
    wanted_accounts,
)

LAB = Organisation(name="lab", title='The Lab, "Ltd"')
SMALL = Quota(cpu_milli=2500, memory_bytes=1 << 30, accelerators=2)
COUNTED = frozenset({"cpu", "mem", "gres/gpu"})
DESCRIBED = """\
moulin-org-lab|made by moulin: the lab ltd
moulin-project-vision|made by moulin: vision
physics|the physics department
root|default root account
"""
ROWS = """\
root|||||normal
root||root|||normal
physics|root||cpu=4||normal
moulin-org-lab|root||||normal
moulin-project-vision|moulin-org-lab||cpu=3,gres/gpu=2,mem=1G||normal
moulin-project-vision||mill|||normal
"""


def tree(described="", rows="", counted=COUNTED):
    accounts = read_accounts(described, rows)
    return Tree(cluster="c", user="mill", accounts=accounts, counted=counted)


def commands(projects, known, **more):
    found = changes(wanted_accounts([LAB], projects, known, **more), known)
    return [" ".join(command).removeprefix("sacctmgr -i ") for command in found]


def vision(quota=SMALL):
    return Project(name="vision", organisation="lab", quota=quota)


def test_an_empty_slurm_gets_the_whole_tree():
    lab, project, user = commands([vision()], tree(), root="sites", qos="high")
    assert lab == (
        "add account moulin-org-lab cluster=c parent=sites"
        " description=made by moulin: the lab ltd organization=moulin qos=high"
    )
    assert project == (
        "add account moulin-project-vision cluster=c parent=moulin-org-lab"
        " description=made by moulin: vision organization=moulin"
        " GrpTRES=cpu=3,mem=1024M,gres/gpu=2"
    )
    assert user == "add user mill cluster=c account=moulin-project-vision"


def test_a_tree_that_is_right_takes_no_command():
    assert commands([vision()], tree(DESCRIBED, ROWS)) == []


def test_another_quota_is_another_limit_and_none_lifts_it():
    known = tree(DESCRIBED, ROWS)
    modify = "modify account where name=moulin-project-vision cluster=c set"
    assert commands([vision(Quota(cpu_milli=1000))], known) == [
        f"{modify} GrpTRES=cpu=1,mem=-1,gres/gpu=-1"
    ]
    assert commands([vision(Quota())], known) == [f"{modify} GrpTRES=cpu=-1,mem=-1,gres/gpu=-1"]


def test_what_slurm_does_not_count_is_no_limit():
    known = tree(counted=frozenset({"cpu", "mem"}))
    assert "gres/gpu" not in " ".join(commands([vision()], known))


def test_a_project_that_is_gone_is_closed_and_one_that_is_back_is_opened():
    known = tree(DESCRIBED, ROWS)
    other = Project(name="sound", organisation="lab")
    closing = "modify account where name=moulin-project-vision cluster=c set GrpSubmitJobs=0"
    assert commands([other], known)[-1] == closing
    closed = tree(DESCRIBED, ROWS.replace("mem=1G||normal", "mem=1G|0|normal"))
    assert closing not in commands([other], closed)
    assert commands([vision()], closed) == [
        "modify account where name=moulin-project-vision cluster=c set GrpSubmitJobs=-1"
    ]


def test_an_account_whose_money_is_spent_is_closed_and_opened_when_there_is_some():
    modify = "modify account where name=moulin-project-vision cluster=c set"
    (added,) = [
        each for each in commands([vision()], tree(), closed=["vision"]) if "Submit" in each
    ]
    assert added.startswith("add account moulin-project-vision")
    assert added.endswith("GrpSubmitJobs=0")
    known = tree(DESCRIBED, ROWS)
    assert commands([vision()], known, closed=["vision"]) == [f"{modify} GrpSubmitJobs=0"]
    closed = tree(DESCRIBED, ROWS.replace("mem=1G||normal", "mem=1G|0|normal"))
    assert commands([vision()], closed, closed=["vision"]) == []
    assert commands([vision()], closed) == [f"{modify} GrpSubmitJobs=-1"]


def test_accounts_of_others_are_left_alone():
    known = tree(DESCRIBED, ROWS)
    assert "physics" not in " ".join(commands([], known))
    taken = tree(DESCRIBED.replace("made by moulin: vision", "somebody's own"), ROWS)
    with pytest.raises(InUse, match="was not made by Moulin"):
        commands([vision()], taken)


def test_names_that_slurm_cannot_tell_apart_are_refused():
    twice = [vision(), Project(name="Vision", organisation="lab")]
    with pytest.raises(InvalidSpec, match="two names"):
        commands(twice, tree())


def test_names_of_organisations_and_projects_never_meet():
    assert organisation_account("project-a") != project_account("a")
