"""What an image is called, and the words each container tool is started with; tables."""

from typing import Any

import pytest

from moulin.domain.image import Form, Image, read_image
from moulin.engines.task.apptainer import Apptainer
from moulin.engines.task.containers import contain, is_obeyed
from moulin.engines.task.image import Contents
from moulin.engines.task.podman import Podman

PODMAN = Podman(program="/usr/bin/podman", crun="/usr/bin/crun", init="/usr/bin/tini-static")
APPTAINER = Apptainer(program="/usr/bin/apptainer")


@pytest.mark.parametrize(
    ("written", "form", "name"),
    [
        ("python:3.12", Form.REGISTRY, "python:3.12"),
        ("docker://ghcr.io/mill/grind:2", Form.REGISTRY, "ghcr.io/mill/grind:2"),
        ("ghcr.io/mill/grind@sha256:0abc", Form.REGISTRY, "ghcr.io/mill/grind@sha256:0abc"),
        ("/images/mill.sif", Form.SIF, "/images/mill.sif"),
        ("/images/mill.sqsh", Form.SQUASHFS, "/images/mill.sqsh"),
        ("/images/mill", Form.DIRECTORY, "/images/mill"),
        ("oci-archive:/images/mill.tar", Form.ARCHIVE, "oci-archive:/images/mill.tar"),
        ("oras://ghcr.io/mill/sif:2", Form.APPTAINERS_OWN, "oras://ghcr.io/mill/sif:2"),
    ],
)
def test_an_image_is_read(written, form, name):
    assert read_image(written) == Image(form, name)


@pytest.mark.parametrize(
    "written", ["", "--privileged", "a b", "mill.sif,x", "./mill.sif", "ftp://mill", "a\n", "-v/:/"]
)
def test_what_no_tool_could_take_is_no_image(written):
    assert read_image(written) is None


def told(**changes) -> Contents:
    values: dict[str, Any] = {
        "step": "job_1.u0.g1.t0",
        "image": Image(Form.REGISTRY, "ghcr.io/mill/grind:2"),
        "argv": ("sh", "-c", "grind"),
        "mounts": ("/spool/a/0", "/spool/a/shared"),
        "workdir": "/spool/a/shared",
        "names": ("MOULIN_STEP_ID", "SECRET"),
        "obeyed": {"PATH": "/opt/bin"},
    }
    return Contents(**(values | changes))


def test_podman_is_out_of_the_way_and_asks_for_nothing_more():
    argv = PODMAN.contain(told(open_files_max=1000, processes_max=500)).argv
    index = argv.index("ghcr.io/mill/grind:2")
    assert argv[:2] == ("/usr/bin/podman", "run")
    assert argv[index + 1 :] == ("sh", "-c", "grind")
    options = set(argv[2:index])
    assert {
        *("--network=host", "--user=0:0", "--cgroups=disabled", "--init", "--sig-proxy=false"),
        *("--security-opt=no-new-privileges", "--entrypoint=", "--rm", "--name=job_1.u0.g1.t0"),
        *("--volume=/spool/a/0:/spool/a/0", "--workdir=/spool/a/shared"),
        *("--ulimit=nofile=1000:1000", "--ulimit=nproc=500:500"),
    } <= options
    assert not any("privileged" in word or word.startswith("--device") for word in options)


def test_podman_is_told_names_and_of_values_only_what_it_would_obey():
    argv = PODMAN.contain(told()).argv
    given = [word for word in argv if word.startswith("--env=")]
    assert given == ["--env=MOULIN_STEP_ID", "--env=SECRET", "--env=PATH=/opt/bin"]


@pytest.mark.parametrize(
    ("tool", "word"), [(PODMAN, "--device=nvidia.com/gpu=all"), (APPTAINER, "--nv")]
)
def test_devices_are_asked_for_only_where_the_task_has_some(tool, word):
    assert word in tool.contain(told(has_devices=True)).argv
    assert word not in tool.contain(told()).argv


def test_a_directory_is_the_root_and_is_not_written_to():
    argv = PODMAN.contain(told(image=Image(Form.DIRECTORY, "/images/mill"))).argv
    assert argv[-5:] == ("--rootfs", "/images/mill:O", "sh", "-c", "grind")


def test_apptainer_mounts_what_is_ours_and_no_home():
    made = APPTAINER.contain(told())
    assert made.argv == (
        *("/usr/bin/apptainer", "--silent", "exec", "--no-privs", "--no-home", "--no-mount=cwd"),
        *("--bind=/spool/a/0:/spool/a/0", "--bind=/spool/a/shared:/spool/a/shared"),
        *("--pwd=/spool/a/shared", "docker://ghcr.io/mill/grind:2", "sh", "-c", "grind"),
    )
    assert made.env == {"APPTAINERENV_PATH": "/opt/bin"}


def test_its_forerunner_has_variables_of_its_own_name():
    made = Apptainer(program="/opt/bin/singularity").contain(told())
    assert made.env == {"SINGULARITYENV_PATH": "/opt/bin"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("PATH", True), ("HOME", True), ("LD_PRELOAD", True), ("CONTAINER_HOST", True)),
        *(("RANK", False), ("MOULIN_STEP_ID", False), ("AWS_SECRET", False)),
    ],
)
def test_what_a_tool_would_obey_itself(name, expected):
    assert is_obeyed(name) is expected


def test_a_tool_keeps_the_machines_variables_and_the_task_its_own():
    env = {"PATH": "/opt/bin", "SECRET": "s", "LD_PRELOAD": "x.so"}
    inside = told(obeyed={"PATH": "/opt/bin", "LD_PRELOAD": "x.so"})
    made = contain(APPTAINER, inside, env, {"PATH": "/usr/bin", "HOME": "/root"})
    assert made.env == {
        "PATH": "/usr/bin",
        "SECRET": "s",
        "APPTAINERENV_PATH": "/opt/bin",
        "APPTAINERENV_LD_PRELOAD": "x.so",
    }
