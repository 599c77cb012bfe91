"""Which cgroup directory may be used, on trees of files shaped like a cgroup mount."""

import pytest

from moulin.engines.local.cgroup import CgroupBase, find_cgroup_base

MOUNT = "30 23 0:26 / {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "own_groups"),
    [
        ("", "0::/\n"),
        ("22 1 8:1 / / rw - ext4 /dev/sda rw\n", "0::/\n"),
        (MOUNT.format(mount="/nowhere"), "9:memory:/a\n"),
        (MOUNT.format(mount="/nowhere"), "0::/\n"),
    ],
)
def test_without_a_version_2_group_of_our_own_there_is_none(mountinfo, own_groups):
    assert find_cgroup_base(mountinfo, own_groups) is None


def test_a_directory_that_is_no_cgroup_is_not_taken(tmp_path):
    """A plain directory makes plain directories: nothing in them proves a kernel's hand."""
    assert find_cgroup_base(MOUNT.format(mount=tmp_path), "0::/\n") is None
    assert list(tmp_path.iterdir()) == []


def test_two_factories_never_share_a_group():
    base = CgroupBase(directory="/cg", limits_memory=False)
    first, second = base.group("/data/a/spool/x/0"), base.group("/data/b/spool/x/0")
    assert first != second
    assert first == base.group("/data/a/spool/x/0")
    assert first.startswith("/cg/moulin-")
