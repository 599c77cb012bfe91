"""What the nodes of a Slurm cluster run images with: the operator's word, else what is found; asks once."""

from pathlib import PurePath

from moulin.domain.plan import StartStep
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.task.apptainer import Apptainer
from moulin.engines.task.containers import checked_image
from moulin.engines.task.image import ContainerTool
from moulin.engines.task.pyxis import Pyxis
from moulin.engines.task.specification import refusal


class Images:
    """The container tool of one pool."""

    def __init__(self, cluster: Cluster, named: str) -> None:
        """`named` is the pool's setting, empty when it has none."""
        self._cluster = cluster
        self._named = named

    def tool_for(self, step: StartStep) -> ContainerTool | None:
        """Return what runs a step's image on the nodes, None for a step without one.

        Raises `EngineRefused` when nothing does, with what to install, and `EngineUnavailable` when
        that cannot be found out now.
        """
        if not step.task.image:
            return None
        image, tool = checked_image(step), self._tool()
        if tool is None:
            why = f"image {step.task.image!r} needs pyxis or Apptainer on the nodes: neither was found"
            hint = (
                "install Apptainer on every node; the pool's setting `images` says what nodes have"
            )
            raise refusal(step, why, hint)
        if not tool.takes(image.form):
            why = f"image {step.task.image!r} is {image.form}, which {tool.title} cannot run"
            raise refusal(step, why, "name a registry's image, or install Apptainer on the nodes")
        return tool

    def _tool(self) -> ContainerTool | None:
        self._named = self._named or self._cluster.image_tool()
        if self._named == "pyxis":
            return Pyxis()
        return Apptainer(program=self._named) if PurePath(self._named).name else None
