"""What engines say that their nodes lack is what they would refuse at a start, and nothing else."""

import time
from dataclasses import replace

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.image import Form
from moulin.domain.needs import NEED_BY_FORM, Need, image_lacks
from moulin.domain.workload import EndpointSpec, TaskTemplate
from moulin.engines.kubernetes.manifests import KubernetesPool, lacks, refuse_what_cannot_run
from moulin.engines.slurm import images
from moulin.engines.slurm.images import Images
from moulin.engines.task.containers import images_lacking
from moulin.engines.task.podman import Podman
from tests.conformance.engine_bench import make_step

POOL = KubernetesPool(name="k")
WITH_IMAGE = replace(POOL, image="busybox")
TASK = TaskTemplate(command=("true",), image="alpine")
STEP = make_step("a", TASK, nodes=("k-w",))
GIVEN = {
    Need.ENDPOINT: replace(STEP, endpoint=EndpointSpec(model="m")),
    Need.SECRETS: replace(STEP, secrets={"A": "a"}),
    Need.FOLDER: replace(STEP, task=replace(TASK, bundle="0" * 64)),
    Need.COPIES: replace(STEP, task=replace(TASK, inputs={"a": "/a"})),
    Need.OBJECTS: replace(STEP, task=replace(TASK, inputs={"a": "s3://mill/a"})),
    Need.STOP_SIGNAL: replace(STEP, stop_signal="USR1"),
    Need.NO_IMAGE: replace(STEP, task=replace(TASK, image="")),
    Need.REGISTRY_IMAGE: STEP,
    Need.DIRECTORY_IMAGE: replace(STEP, task=replace(TASK, image="/images/a")),
    Need.ARCHIVE_IMAGE: replace(STEP, task=replace(TASK, image="oci-archive:/a")),
    Need.SIF_IMAGE: replace(STEP, task=replace(TASK, image="/a.sif")),
    Need.SQUASHFS_IMAGE: replace(STEP, task=replace(TASK, image="/a.sqsh")),
    Need.APPTAINERS_IMAGE: replace(STEP, task=replace(TASK, image="oras://mill/a")),
    Need.UNKNOWN_IMAGE: replace(STEP, task=replace(TASK, image="no image")),
}


@pytest.mark.parametrize("pool", [POOL, WITH_IMAGE], ids=["plain", "with an image"])
@pytest.mark.parametrize("need", GIVEN)
def test_kubernetes_lacks_what_it_refuses(pool, need):
    if need in lacks(pool) or need is Need.UNKNOWN_IMAGE:
        with pytest.raises(EngineRefused):
            refuse_what_cannot_run(pool, GIVEN[need])
    else:
        refuse_what_cannot_run(pool, GIVEN[need])


def test_several_tools_lack_only_what_none_of_them_takes():
    assert images_lacking(()) == image_lacks(()) == tuple(NEED_BY_FORM.values())
    podman = Podman(program="podman", crun="crun", init="tini")
    taken = {Form.REGISTRY, Form.DIRECTORY, Form.ARCHIVE}
    assert images_lacking((podman,)) == image_lacks(taken)
    assert set(images_lacking((podman,))) == {NEED_BY_FORM[form] for form in set(Form) - taken}


class Nodes:
    """A Slurm that answers what it runs images with, or does not."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def image_tool(self) -> str:
        self.asked += 1
        found = self.answers.pop(0)
        if found is None:
            raise EngineUnavailable("Slurm does not answer")
        return found


def test_slurm_is_asked_until_it_is_known_and_then_no_more(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    nodes = Nodes(None, "", "pyxis")
    found = Images(nodes, "")  # type: ignore[arg-type] # what it asks of a cluster is there
    assert found.lacks() == ()  # nobody knows yet, so nothing is refused for it
    assert found.lacks() == ()
    now[0] += images.ASK_S
    assert found.lacks() == image_lacks(())
    assert found.lacks() == image_lacks(())
    assert nodes.asked == 2
    now[0] += images.ASK_S
    assert found.lacks() == image_lacks({Form.REGISTRY, Form.SQUASHFS})
    now[0] += images.ASK_S
    assert found.lacks() == image_lacks({Form.REGISTRY, Form.SQUASHFS})
    assert nodes.asked == 3
    named = Images(Nodes(), "apptainer")  # type: ignore[arg-type] # never asked
    assert named.lacks() == ()
