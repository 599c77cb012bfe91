"""What the nodes of a Slurm cluster run images with: the operator's word, else what is found; asks once."""

import contextlib
import time
from pathlib import PurePath
from typing import Final

from moulin.domain.errors import EngineUnavailable
from moulin.domain.needs import Need
from moulin.domain.plan import StartStep
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.task.apptainer import Apptainer
from moulin.engines.task.containers import checked_image, images_lacking
from moulin.engines.task.image import ContainerTool
from moulin.engines.task.pyxis import Pyxis
from moulin.engines.task.specification import refusal

ASK_S: Final = 60.0


class Images:
    """The container tool of one pool."""

    def __init__(self, cluster: Cluster, named: str) -> None:
        """`named` is the pool's setting, empty when it has none."""
        self._cluster = cluster
        self._named = named
        self._is_known = False
        self._ask_at_s = float("-inf")

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

    def lacks(self) -> tuple[Need, ...]:
        """Return which images no node can run; nothing while that cannot be found out.

        Where no tool was found it is asked for again now and then, not each time.
        """
        now_s = time.monotonic()
        if not self._named and now_s >= self._ask_at_s:
            self._ask_at_s = now_s + ASK_S
            with contextlib.suppress(EngineUnavailable):
                self._tool()
                self._is_known = True
        tool = self._made()
        is_known = self._is_known or tool is not None
        return images_lacking((tool,) if tool is not None else ()) if is_known else ()

    def _tool(self) -> ContainerTool | None:
        self._named = self._named or self._cluster.image_tool()
        return self._made()

    def _made(self) -> ContainerTool | None:
        if self._named == "pyxis":
            return Pyxis()
        return Apptainer(program=self._named) if PurePath(self._named).name else None
