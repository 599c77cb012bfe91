"""Finds the cgroup v2 directory that was given to this process; never takes one that was not.

With a group per task the kernel accounts CPU time exactly and kills the tree at once. Version 1 is
not used: no supported distribution mounts it by default, and a task moved out of the version 1
group that a supervisor tracks is lost to it. Reference: the kernel's cgroup-v2.rst, "Delegation";
systemd's "Control Group APIs and Delegation".
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DELEGATION_MARKS: Final = ("user.delegate", "trusted.delegate")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupBase:
    """A directory under which groups for tasks may be made; `limits_memory` by the kernel there."""

    directory: str
    limits_memory: bool

    def group(self, step_directory: str) -> str:
        """Return the group of a step; two factories on one machine never share a name."""
        digest = hashlib.blake2s(step_directory.encode(), digest_size=10).hexdigest()
        return f"{self.directory}/moulin-{digest}"


def find_cgroup_base(
    mountinfo: str | None = None, own_groups: str | None = None
) -> CgroupBase | None:
    """Return where groups may be made, None when there is no such place.

    The arguments are the texts of /proc/self/mountinfo and /proc/self/cgroup, read when not given.
    A place qualifies when it is this process's own group, or the parent that a supervisor marked
    as delegated, and a trial group can be made in it.
    """
    mount = _mount_point(_read("/proc/self/mountinfo") if mountinfo is None else mountinfo)
    own = _own_path(_read("/proc/self/cgroup") if own_groups is None else own_groups)
    if not mount or not own:
        return None
    own_directory = os.path.normpath(f"{mount}/{own}")
    parent = os.path.dirname(own_directory)
    if own != "/" and _is_marked(parent) and _can_make(parent):
        return CgroupBase(directory=parent, limits_memory=_takes_memory(parent))
    if _is_given(own, own_directory) and _can_make(own_directory):
        return CgroupBase(directory=own_directory, limits_memory=_takes_memory(own_directory))
    return None


def _is_given(own: str, directory: str) -> bool:
    # The administrator can write everywhere, so writing proves nothing; the root of a container
    # or of a machine without a supervisor belongs to nobody else.
    return own == "/" or _is_marked(directory) or (os.geteuid() != 0 and _is_own(directory))


def _is_own(directory: str) -> bool:
    try:
        return os.stat(directory).st_uid == os.geteuid()
    except OSError:
        return False


def _is_marked(directory: str) -> bool:
    for name in _DELEGATION_MARKS:
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _can_make(directory: str) -> bool:
    trial = f"{directory}/moulin-trial-{os.getpid()}"
    try:
        os.mkdir(trial, 0o755)
        has_kill = os.path.exists(f"{trial}/cgroup.procs")
        os.rmdir(trial)
    except OSError:
        return False
    return has_kill


def _takes_memory(directory: str) -> bool:
    enabled = Path(directory, "cgroup.subtree_control")
    if "memory" in _read(str(enabled)).split():
        return True
    if "memory" not in _read(f"{directory}/cgroup.controllers").split():
        return False
    try:
        enabled.write_text("+memory", encoding="ascii")
    except OSError:
        return False  # a group that holds processes itself cannot pass controllers on
    return True


def _mount_point(mountinfo: str) -> str:
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            return before.split()[4]
    return ""


def _own_path(own_groups: str) -> str:
    for line in own_groups.splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
