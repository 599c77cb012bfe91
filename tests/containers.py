"""A real container tool with an image made here: BusyBox and nothing else, from no registry.

Images and containers are kept in a folder of their own. On machines that mix both versions of control
groups, which crun refuses, the tool is shown only one of them.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from moulin.engines.task.containers import find_tools
from tests.lacking import lacking

IMAGE = "localhost/moulin-test:1"
APPLETS = ("sh", "sleep", "cat", "dd", "echo", "id", "kill", "ls", "pwd", "touch", "true")
# Debian 12 has no Apptainer: where there is one, it is tested like the other.
CONTAINER_TOOLS = ("podman", *(("apptainer",) if shutil.which("apptainer") else ()))
MIXED = Path("/sys/fs/cgroup/unified")
# Only the view of the process and what it starts changes; the real tool does the work.
WRAPPER = """\
#!/bin/sh
exec unshare --mount --propagation private sh -c '
umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec {program} "$@"' sh "$@"
"""


@dataclass(frozen=True)
class Containers:
    """What a local engine needs to run images: its variables, and two images of one content."""

    folder: Path
    image: str
    is_podman: bool

    @property
    def directory(self) -> str:
        """The same image as a directory."""
        return str(self.folder / "rootfs")

    @cached_property
    def environment(self) -> dict[str, str]:
        """The variables of the engine."""
        others = f":{os.environ['PATH']}" if self.is_podman else ""
        path = f"{self.folder / 'bin'}{others}"
        storage = str(self.folder / "storage.conf")
        return {"PATH": path, "HOME": str(self.folder), "CONTAINERS_STORAGE_CONF": storage}

    def podman(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Podman as the engine's tasks do."""
        return subprocess.run(
            ["podman", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def left(self) -> list[str]:
        """Return the containers that Podman still has on record."""
        return self.podman("ps", "--all", "--format={{.Names}}").stdout.split()


def make_podman(folder: Path) -> Containers:
    """Make the image; skip people without Podman, fail in CI."""
    made = Containers(folder, IMAGE, is_podman=True)
    _make_root(folder / "rootfs")
    (folder / "bin").mkdir()
    if MIXED.exists() and os.geteuid() == 0:
        wrapper = folder / "bin" / "podman"
        wrapper.write_text(WRAPPER.format(program=shutil.which("podman")))
        wrapper.chmod(0o755)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
    )
    archive = folder / "root.tar"
    subprocess.run(["tar", "-C", folder / "rootfs", "-cf", archive, "."], check=True)
    imported = made.podman("import", str(archive), IMAGE)
    limits = ("--ulimit=nofile=1000:1000", "--ulimit=nproc=1000:1000")
    flags = ("--rm", "--cgroups=disabled", "--runtime=crun", "--network=host", *limits)
    tried = made.podman("run", *flags, IMAGE, "true")
    if imported.returncode or tried.returncode:
        lacking(f"Podman does not work here: {imported.stderr}{tried.stderr}")
    return made


@pytest.fixture(scope="session")
def podman() -> Iterator[Containers]:
    """Give Podman with an image."""
    missing = [name for name in ("podman", "crun", "busybox") if shutil.which(name) is None]
    if missing or not find_tools(os.environ["PATH"]):
        lacking(f"no {', '.join(missing)}: apt-get install podman crun tini busybox-static")
    folder = Path(tempfile.mkdtemp(prefix="moulin-images-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield make_podman(folder)


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Containers:
    """Give Apptainer with a directory as its image."""
    folder = tmp_path_factory.mktemp("apptainer")
    _make_root(folder / "rootfs")
    (folder / "bin").mkdir()
    alone = folder / "bin" / "apptainer"  # where both tools are, an engine prefers the other
    found = shutil.which("apptainer")
    alone.write_text(f'#!/bin/sh\nPATH="{os.environ["PATH"]}" exec {found} "$@"\n')
    alone.chmod(0o755)
    return Containers(folder, str(folder / "rootfs"), is_podman=False)


def _make_root(root: Path) -> None:
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "root"):
        (root / name).mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    (root / "var" / "tmp").mkdir(parents=True)
    (root / "etc" / "made-here").write_text("only in the image\n")
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
