"""Slurm's tree of accounts as organisations and projects of an operator file."""

import pytest

from moulin.app.files import parse_mapping
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Organisation, Project
from moulin.domain.factoryfile import parse_factory
from moulin.engines.slurm.tenants import levels_of, read_associations, tenants_of

TREE = """\
Account|ParentName|User|GrpTRES|GrpTRESMins|GrpJobs|MaxWall|MaxJobs|QOS
root|||||||||
root||root|||||||normal
physics|root||cpu=512,mem=2T,gres/gpu=16||||||
lattice|physics||gres/gpu=32,cpu=128|cpu=100000|40|2-00:00:00||normal,long
lattice||ann||||||normal
lattice||bob|||||5|normal
optics|physics||||||||
optics||cid|||||||
bio lab|root||||||||
bio lab||dan|||||||
moulin-org-lab|root||||||||
moulin-project-web|moulin-org-lab||cpu=1||||||
moulin-project-web||ann|||||||
"""


def declared(text):
    lines = "\n".join(tenants_of(read_associations(text)))
    objects = parse_factory(parse_mapping(lines.encode(), origin="cluster.yaml"), registry={})
    return lines, {each.name: each for each in objects if isinstance(each, Project)}, objects


def test_accounts_with_users_are_projects_of_the_account_below_root():
    lines, projects, objects = declared(TREE)
    assert {each.name for each in objects if isinstance(each, Organisation)} == {
        "physics",
        "bio-lab",
    }
    assert set(projects) == {"lattice", "optics", "bio-lab"}
    assert projects["optics"].organisation == "physics"
    assert projects["bio-lab"].organisation == "bio-lab"
    assert "`budget: 5000` (euros)" in lines
    said = lines.replace("{organisation: physics", "{organisation: physics, budget: 5000", 1)
    followed = parse_factory(parse_mapping(said.encode(), origin="cluster.yaml"), registry={})
    assert 5000 * 10**9 in {each.budget_neur for each in followed if isinstance(each, Project)}


def test_a_quota_is_the_least_of_the_accounts_above():
    _, projects, _ = declared(TREE)
    lattice = projects["lattice"].quota
    assert (lattice.cpu_milli, lattice.accelerators, lattice.workloads) == (128_000, 16, 40)
    assert lattice.memory_bytes == 2 << 40
    assert projects["optics"].quota.cpu_milli == 512_000
    assert projects["bio-lab"].quota.cpu_milli == -1


def test_what_has_no_form_is_said():
    lines, _, _ = declared(TREE)
    [said] = [line for line in lines.splitlines() if "GrpTRESMins" in line]
    assert said == (
        "  # 2 users; shares the limits of physics with others, which no quota says; GrpTRESMins"
        " cpu=100000; MaxWall 2-00:00:00; QoS normal,long; 1 of them have limits of their own"
    )


def test_a_slurm_without_accounts_declares_nobody():
    assert tenants_of(read_associations(TREE.splitlines()[0])) == []
    assert tenants_of(read_associations("\n".join(TREE.splitlines()[:3]))) == []


def test_columns_come_in_any_order_and_have_to_be_there():
    _, projects, _ = declared("User|Account|ParentName|Extra\n|a|root|\nann|a||\n")
    assert projects["a"].quota.cpu_milli == -1
    with pytest.raises(InvalidSpec, match="no column ParentName") as caught:
        read_associations("Account|User\na|\n")
    assert "sacctmgr -P show assoc" in caught.value.hint
    with pytest.raises(InvalidSpec, match="Account, ParentName, User"):
        read_associations("")


def test_a_circle_of_accounts_ends():
    _, projects, _ = declared("Account|ParentName|User\na|b|\nb|a|\na||ann\n")
    assert projects["a"].organisation == "b"


def test_each_qos_that_limits_is_said():
    text = "Name|MaxWall|GrpTRES|MaxTRESPU\nnormal|||\nlong|7-00:00:00||cpu=64\n"
    assert levels_of(text)[0] == "# QoS long: MaxWall 7-00:00:00, MaxTRESPU cpu=64"
    assert levels_of("Name|MaxWall\nnormal|\n") == []
