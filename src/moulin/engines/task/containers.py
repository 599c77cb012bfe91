"""Finds the container tool of this machine and puts a task into it; without one it says what to install.

A task with an image never runs without it: what is missing is a refusal, before anything starts.
"""

import os
import resource
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from moulin.domain.image import UNMOUNTABLE, Form, Image, read_image
from moulin.domain.needs import Need, image_lacks
from moulin.domain.plan import StartStep
from moulin.engines.task.apptainer import Apptainer
from moulin.engines.task.image import Contained, ContainerTool, Contents
from moulin.engines.task.podman import Podman
from moulin.engines.task.specification import program_words, refusal
from moulin.engines.task.spool import StepFiles
from moulin.engines.task.task_env import PASSED_ON

# Where distributions put programs that only Podman calls.
_PODMANS_OWN: Final = ("/usr/libexec/podman", "/usr/lib/podman", "/usr/libexec/catatonit")
# The first says 127 for a program that is not in the image, as a shell does; the second says 1.
_INITS: Final = ("tini-static", "catatonit")
# What a tool takes for its own, beside what any program does.
_OBEYED: Final = ("LD_", "XDG_", "CONTAINER", "DOCKER_", "APPTAINER", "SINGULARITY", "GODEBUG")
# Where a tool keeps images and logins, and how it reaches a registry; of Moulin's own variables.
TOOLS_OWN: Final = (
    *("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"),
    *("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "REGISTRY_AUTH_FILE"),
    *("APPTAINER_CACHEDIR", "APPTAINER_TMPDIR", "http_proxy", "https_proxy", "no_proxy"),
)
INSTALL: Final = (
    "on its machine, `apt-get install podman crun catatonit`, or Apptainer; `moulin doctor` says what it"
    " finds"
)


def find_tools(path: str) -> tuple[ContainerTool, ...]:
    """Return the tools that can be used here, the preferred one first; `path` is as in PATH."""
    found: list[ContainerTool] = []
    wider = os.pathsep.join((path, *_PODMANS_OWN))
    podman, crun = shutil.which("podman", path=path), shutil.which("crun", path=wider)
    init = next((f for f in (shutil.which(name, path=wider) for name in _INITS) if f), None)
    if podman and crun and init:
        found.append(Podman(program=podman, crun=crun, init=init))
    for name in ("apptainer", "singularity"):
        program = shutil.which(name, path=path)
        if program:
            found.append(Apptainer(program=program))
            break
    return tuple(found)


def images_lacking(tools: Iterable[ContainerTool]) -> tuple[Need, ...]:
    """Return which forms of images none of these tools can run."""
    known = tuple(tools)
    return image_lacks(form for form in Form if any(tool.takes(form) for tool in known))


def missing_beside_podman(path: str) -> tuple[str, ...]:
    """Return what Podman, which is here, wants and has not; none where it is not here."""
    wider = os.pathsep.join((path, *_PODMANS_OWN))
    if not shutil.which("podman", path=path):
        return ()
    has_init = any(shutil.which(name, path=wider) for name in _INITS)
    has_crun = shutil.which("crun", path=wider) is not None
    return (*(() if has_crun else ("crun",)), *(() if has_init else ("catatonit",)))


def tool_for(step: StartStep, path: str) -> tuple[ContainerTool, Image]:
    """Return what runs a step's image here; raises `EngineRefused` with what to install."""
    image = checked_image(step)
    tools = find_tools(path)
    for tool in tools:
        if tool.takes(image.form):
            return tool, image
    if tools:
        others = " and ".join(tool.title for tool in tools)
        why = f"image {step.task.image!r} is {image.form}, which {others} cannot run"
        raise refusal(step, why, "name a registry's image, or install Apptainer")
    missing = missing_beside_podman(path)
    if missing:
        why = f"image {step.task.image!r} needs {' and '.join(missing)} beside Podman"
        raise refusal(step, why, f"on its machine, `apt-get install {' '.join(missing)}`")
    why = f"image {step.task.image!r} needs a container tool, and there is none"
    raise refusal(step, why, INSTALL)


def checked_image(step: StartStep) -> Image:
    """Return a step's image; raises `EngineRefused` for what no tool could run or mount."""
    image = read_image(step.task.image)
    if image is None:
        raise refusal(
            step,
            f"image {step.task.image!r} is no image",
            "name one as a registry does, such as ghcr.io/team/program:2, or give its whole path",
        )
    if UNMOUNTABLE & set(step.task.workdir):
        why = f"workdir {step.task.workdir!r} cannot be mounted into an image"
        raise refusal(step, why, "use a path without comma and colon")
    return image


def contents(
    step: StartStep, files: StepFiles, env: Mapping[str, str], base: Mapping[str, str]
) -> Contents:
    """Return what a tool is told of a step; `base` are variables of the machine, not of the task."""
    own = {*step.task.env, *step.env}
    names = {name for name in env if name in own or name not in base}
    obeyed = {name for name in names if is_obeyed(name)}
    secrets = {*step.secrets, *step.secret_files}
    workdir = step.task.workdir or files.shared
    mounts = (files.directory, files.shared, files.checkpoint, workdir)
    return Contents(
        step=step.step,
        image=checked_image(step),
        argv=program_words(step),
        mounts=tuple(dict.fromkeys(mounts)),
        workdir=workdir,
        names=tuple(sorted((names - obeyed) | secrets)),
        obeyed={name: env[name] for name in sorted(obeyed)},
        has_devices=step.resources.accelerators > 0,
        open_files_max=_hard_limit(resource.RLIMIT_NOFILE),
        processes_max=_hard_limit(resource.RLIMIT_NPROC),
    )


def contained_here(
    step: StartStep,
    files: StepFiles,
    env: Mapping[str, str],
    base: Mapping[str, str],
    tools_own: Mapping[str, str],
) -> Contained | None:
    """Return how a step's container is started on this machine; None for a step without an image.

    Its `env` holds all variables: the task's, the machine's `base` and what the tool itself goes by.
    Raises `EngineRefused` as `tool_for` does.
    """
    if not step.task.image:
        return None
    tool, _ = tool_for(step, base["PATH"])
    inside = contents(step, files, env, base)
    return contain(tool, inside, {**tools_own, **env}, {**base, **tools_own})


def contain(
    tool: ContainerTool, inside: Contents, env: Mapping[str, str], base: Mapping[str, str]
) -> Contained:
    """Return how a tool is started, with the task's variables but for those it would obey itself."""
    made = tool.contain(inside)
    whole = {name: value for name, value in env.items() if name not in inside.obeyed}
    whole |= {name: base[name] for name in inside.obeyed if name in base}
    return replace(made, env={**whole, **made.env})


def is_obeyed(name: str) -> bool:
    """Say whether a container tool would take a task's variable for its own.

    >>> is_obeyed("PATH"), is_obeyed("LD_LIBRARY_PATH"), is_obeyed("RANK")
    (True, True, False)
    """
    return name in PASSED_ON or name in TOOLS_OWN or name.startswith(_OBEYED)


def _hard_limit(which: int) -> int:
    hard = resource.getrlimit(which)[1]
    return 0 if hard == resource.RLIM_INFINITY else hard
