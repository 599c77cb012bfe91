"""Runs one tiny job on one node to learn what only a node can tell; it leaves none behind.

The node looks for a file written here and writes one back, says which Python it has and how its clock
stands, and lets one caller in at a port. The job has a time limit, is cancelled when it waits for too
long, when it is not needed any more and when whoever waits for it is interrupted; no other job is touched.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Final

from moulin.domain.errors import EngineError
from moulin.domain.finding import Finding, fine, problem, unknown
from moulin.engines.slurm.checks import judge_clock, refused
from moulin.engines.slurm.client import JobRequest, SlurmClient
from moulin.engines.slurm.formats import ENDED, PENDING, SlurmJob
from moulin.engines.slurm.settings import ANY_PYTHON, SlurmSettings
from moulin.engines.slurm.submission import Launch
from moulin.engines.slurm.waiting import meaning
from moulin.engines.task import probe
from moulin.engines.task.spool import look_again, read_record, write_once

MINUTES: Final = 2
MEMORY_MIB: Final = 100
PYTHON_MIN: Final = (3, 8)
LOOK_S: Final = 1.0
# How long a file of another machine may stay unseen on a network file system.
UNSEEN_S: Final = 30.0
REACH_S: Final = 5.0
_NO_DIRECTORY, _NO_FILE, _NO_WRITING, _NO_PYTHON = 61, 62, 63, 64
_SCRIPT: Final = """\
#!/bin/sh
# Submitted by `moulin cluster check`: looks whether this node sees Moulin's directory, and ends.
cd {directory} || exit {no_directory}
tries=0
until [ -r {folder}/here ]; do
    tries=$((tries + 1)); [ "$tries" -le 10 ] || exit {no_file}; sleep 1
done
cd {folder} && (umask 077; printf %s "$SLURM_JOB_ID" > took) && ln took taken || exit {no_writing}
{choose}{python} -I -S -E -c 'import sys; sys.exit(sys.version_info < {least})' || {{
    {python} --version > version 2>&1; exit {no_python}; }}
exec {python} -I -S -E {folder}/probe.py {folder}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How ports of nodes are reached: `lead` returns where here HOST and port of a node answer.

    `words` say it in a sentence; `is_wanted` that the pool's settings ask for it. `why` tells what is
    wrong when nobody answers there.
    """

    words: str
    is_wanted: bool
    lead: Callable[[str, int], tuple[str, int]]
    why: Callable[[str, int], str]


def trial_job(settings: SlurmSettings, account: str) -> JobRequest:
    """Return the job, without its script: the least there is, with all that the pool passes on."""
    return JobRequest(
        name=f"moulin-check-{secrets.token_hex(4)}",
        comment="moulin cluster check",
        directory="/",
        output="/dev/null",
        script=b"#!/bin/sh\ntrue\n",
        memory_mib=MEMORY_MIB,
        time_limit_minutes=MINUTES,
        partition=settings.partition,
        account=account,
        qos=settings.qos,
        reservation=settings.reservation,
        constraint=settings.constraint,
    )


class Trial:
    """One job, submitted, awaited, judged and gone."""

    def __init__(
        self,
        client: SlurmClient,
        settings: SlurmSettings,
        job: JobRequest,
        folder: Path,
        way: Way,
    ) -> None:
        """`folder` is in the pool's directory, with a file `here` in it; whoever made it removes it."""
        self._client = client
        self._settings = settings
        self._job = replace(job, script=_script(settings, folder))
        self._folder = folder
        self._way = way
        self._token = secrets.token_hex(16)
        self._submitted_s = 0.0
        self._number = 0

    def findings(self, wait_s: float, say: Callable[[str], None]) -> Generator[Finding, None, None]:
        """Yield what the job found; `say` is told of the wait, which lasts `wait_s` in the queue."""
        try:
            self._prepare()
            self._submitted_s = time.time()
            self._number = self._client.submit(self._job)
            say(f"job {self._number} looks at a node; it may wait {wait_s:.0f} s in the queue")
            yield from self._judge(self._await(wait_s), wait_s)
        except EngineError as failure:
            yield refused("job", failure)
        except OSError as failure:
            words = f"{self._folder}: {failure.strerror or failure}"
            yield problem("directory", words, "the pool's directory must be writable here")
        finally:
            self._end()

    def _prepare(self) -> None:
        """Write what the node is to run and to look at."""
        try:
            nodes = self._client.nodes()
        except EngineError:
            nodes = ()
        settings = self._settings
        lines = [f"token {self._token}", f"tool {settings.images}"]
        lines += [f"url {settings.control_url}", f"ca {settings.control_ca}"]
        lines += [f"address {node.name}={node.address or node.name}" for node in nodes]
        program = Path(probe.__file__).read_bytes()
        write_once(str(self._folder / "asked"), "\n".join([*lines, ""]).encode())
        write_once(str(self._folder / "probe.py"), program)

    def _end(self) -> None:
        """Cancel the job, also one of which it is not known whether Slurm took it."""
        with contextlib.suppress(EngineError):
            numbers = [self._number] if self._number else self._found() if self._submitted_s else []
            if numbers:
                self._client.cancel([str(number) for number in numbers])

    def _is_over(self) -> bool:
        """Say whether the job is known to have ended, so that nobody listens there any more."""
        with contextlib.suppress(EngineError):
            return any(each.id == self._number and each.has_ended for each in self._client.jobs())
        return False

    def _found(self) -> Sequence[int]:
        return [number for number, _ in self._client.find(self._job.name)]

    def _await(self, wait_s: float) -> SlurmJob | None:
        """Return the job as it was seen last: with its answer, ended, or waiting for too long."""
        until_s = time.monotonic() + wait_s
        job: SlurmJob | None = None
        while not self._answered():
            with contextlib.suppress(EngineError):
                listed = (each for each in self._client.jobs() if each.id == self._number)
                job = next(listed, job)
            if job is not None and job.state in ENDED:
                self._see(job)
                return job
            is_late = time.monotonic() > until_s
            if is_late and (job is None or job.state in PENDING):
                return job
            if time.monotonic() > until_s + 60.0 * (MINUTES + 1):
                return job
            time.sleep(LOOK_S)
        return job

    def _answered(self) -> bool:
        look_again(str(self._folder))
        return (self._folder / "found").exists()

    def _see(self, job: SlurmJob) -> None:
        """Wait until what an ended job wrote is seen here."""
        name = {0: "found", _NO_PYTHON: "version"}.get(job.exit_code)
        until_s = time.monotonic() + UNSEEN_S
        while name and time.monotonic() < until_s and not (self._folder / name).exists():
            time.sleep(LOOK_S / 5)
            look_again(str(self._folder))

    def _judge(self, job: SlurmJob | None, wait_s: float) -> Iterator[Finding]:
        seen_s = time.time()
        found = read_record(str(self._folder / "found"))
        if found is None:
            if job is not None and job.exit_code == _NO_PYTHON:  # it came as far as that
                yield self._ran(job.nodes)
                yield fine("directory on the node", self._shared(job.nodes))
            yield self._failure(job, wait_s)
            return
        node = found["node"]
        yield self._ran(node)
        yield self._directory(found)
        yield self._python(found)
        port, greeted_ns = self._port(found)
        told_s = int(greeted_ns or found["clock_ns"]) / 1e9
        between_s = (seen_s, time.time()) if greeted_ns else (self._submitted_s, seen_s)
        yield judge_clock("clock of the node", node, between_s, told_s)
        yield judge_images(self._settings.images, found)
        yield from judge_control(self._settings, found)
        yield port

    def _failure(self, job: SlurmJob | None, wait_s: float) -> Finding:
        """Say why there is no answer of the node."""
        if job is None:
            words = f"Slurm took job {self._number} and does not list it; it is cancelled"
            return unknown("job", words, "`squeue` and the log of slurmctld say more")
        if job.state in PENDING:
            why = job.reason_word or job.reason
            plain = meaning(why)
            words = f"job {job.id} waits in the queue after {wait_s:.0f} s"
            words += f": {why}{f' ({plain})' if plain else ''}" if why else ""
            hint = f"it is cancelled; give it longer with --wait {max(600, int(wait_s) * 4)}"
            return unknown("job", words, hint)
        where = f"{job.nodes or 'the node'}"
        directory = self._settings.directory
        shared = (
            "the pool's setting `directory` names a folder that this machine and the nodes share"
        )
        known = {
            0: (
                f"job {job.id} ended well on {where}, and what it wrote in {directory} is not seen here",
                shared,
            ),
            _NO_DIRECTORY: (
                f"{where} does not see {directory}, or user {job.user} may not enter it",
                shared,
            ),
            _NO_FILE: (
                f"{where} sees a {directory}, and not what is written there from here",
                f"{shared}, at the same path and for the same user",
            ),
            _NO_WRITING: (
                f"{where} sees {directory} and cannot write or link there",
                "see its mount options, and that root is not squashed if jobs run as root",
            ),
        }
        if job.exit_code in known:
            return problem("directory on the node", *known[job.exit_code])
        if job.exit_code == _NO_PYTHON:
            return self._no_python(where)
        words = f"job {job.id} ended on {where} as {job.state} with status {job.exit_code}"
        return problem("job", words, "the log of slurmd on that node says why")

    def _no_python(self, where: str) -> Finding:
        file = self._folder / "version"
        said = " ".join(file.read_text("utf-8", "replace").split()) if file.exists() else ""
        named = self._settings.python
        which = "/usr/bin/python3, else the first in PATH," if named == ANY_PYTHON else named
        words = f"{which} is no Python 3.8 or later on {where}{f': {said}' if said else ''}"
        hint = "the pool's setting `python` names one, such as /usr/bin/python3.11"
        return problem("python", words, hint)

    def _ran(self, node: str) -> Finding:
        return fine("job", f"job {self._number} ran on {node}")

    def _shared(self, node: str) -> str:
        return f"{node} sees {self._settings.directory} as this machine does"

    def _directory(self, found: Mapping[str, str]) -> Finding:
        words = self._shared(found["node"])
        other, own = found["user"], os.getuid()
        if other in (str(own), ""):
            return fine("directory on the node", words)
        words += f"; jobs write there as user {other}, Moulin is {own}"
        if own == 0:
            return fine("directory on the node", words)
        hint = "tasks' files are their owner's alone: let both have the same number"
        return problem("directory on the node", words, hint)

    def _python(self, found: Mapping[str, str]) -> Finding:
        return fine("python", f"Python {found['python']} on {found['node']}")

    def _port(self, found: Mapping[str, str]) -> tuple[Finding, str]:
        """Call the node at its port; return what became of it, and the node's clock then."""
        name, way = "ports of the node", self._way
        target = f"{found['address']}:{found['port']}"
        if not found["port"]:
            words = f"{found['node']} could not listen on {found['address'] or 'any address'}"
            return unknown(name, words, "only endpoints need it"), ""
        try:
            said = _greeting(way.lead(found["address"], int(found["port"])))
            if said[:1] == [self._token]:
                return fine(name, f"{target} answers {way.words}"), said[-1]
            why = ""
        except (EngineError, OSError) as failure:
            why = str(failure)
        if self._is_over():
            words = f"{target} was called when the job had ended: its answer was seen too late"
            return unknown(name, words, "check again; only endpoints need it"), ""
        why = why or way.why(found["address"], int(found["port"]))
        words = f"{target} does not answer {way.words}{f': {why}' if why else ''}"
        if way.is_wanted:
            return problem(name, words, "endpoints get no requests there; jobs do not need it"), ""
        hint = "only endpoints need it: open the nodes' ports, or set `reach_replicas: ssh`"
        return unknown(name, words, hint), ""


def judge_images(wanted: str, found: Mapping[str, str]) -> Finding:
    """Say what runs images on the node."""
    node, tool = found["node"], found["tool"]
    if tool:
        return fine("images", f"{tool} runs them on {node}")
    if wanted:
        hint = "install it on every node, or leave the pool's setting `images` out"
        return problem("images", f"{wanted} is not on {node}", hint)
    hint = "install Apptainer or pyxis on every node, if you need them"
    return fine("images", f"nothing on {node} runs them; jobs with an `image` are refused", hint)


def judge_control(settings: SlurmSettings, found: Mapping[str, str]) -> Iterator[Finding]:
    """Say whether the node reaches the control plane, where the pool says that it should."""
    url = settings.control_url
    if not url:
        return
    why = found["trouble"]
    if not why:
        yield fine("control_url", f"{found['node']} reaches {url}")
        return
    words = f"{found['node']} does not reach {url}: {why}"
    if probe.knock(url, settings.control_ca):
        yield unknown("control_url", f"{words}; nor does this machine", "start Moulin, check again")
        return
    hint = "Moulin has to listen beyond loopback, and the nodes to be let through"
    yield problem("control_url", words, hint)


def _greeting(here: tuple[str, int]) -> list[str]:
    with socket.create_connection(here, timeout=REACH_S) as caller, caller.makefile("rb") as lines:
        return lines.readline(200).decode(errors="replace").split()


def _script(settings: SlurmSettings, folder: Path) -> bytes:
    # What a task's script does before it starts Python is all of its end before `exec`.
    launch = Launch(size=1, cpus=1, program="", python=settings.python, is_delegated=False)
    return _SCRIPT.format(
        directory=quote(str(folder.parent)),
        folder=quote(str(folder)),
        choose=launch.last_words().partition("exec ")[0],
        python=launch.interpreter,
        least=PYTHON_MIN,
        no_directory=_NO_DIRECTORY,
        no_file=_NO_FILE,
        no_writing=_NO_WRITING,
        no_python=_NO_PYTHON,
    ).encode()
