"""Go into a running task: run a command in its surroundings, or reach a port that it listens on.

Run by path on the task's node, as a bare file that imports nothing of Moulin:

    python -I -S -E enter.py STEP_DIRECTORY exec TERM [ARGV…]
    python -I -S -E enter.py STEP_DIRECTORY forward PORT
    python -I -S -E enter.py - terminal ARGV…      take standard input as the terminal, become ARGV

A command gets the task's user (this process has no other), environment, folder, CPUs and control
group, and the namespaces of its container where it has one. A port is reached only when a process of
the task's own tree listens on it, in the task's own network; several connections share the pipes as
frames of a stream's number, a kind (data, open, end) and the length of the data that follows. Stream 0
opens when the port was found to be the task's.

It ends when the task does, when nobody reads its standard output any more, or asked to by a signal,
and takes along whatever was started in here.
"""

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36
TIOCSCTTY = 0x540E
TICK_S = 0.25
END_S = 3.0
READY_S = 5.0
CHUNK = 65536
STREAMS_MAX = 256
HEAD = struct.Struct(">IBI")
DATA, OPEN, END = range(3)
LISTEN = "0A"
NAMESPACES = (
    *(("user", 0x10000000), ("mnt", 0x20000), ("pid", 0x20000000), ("net", 0x40000000)),
    *(("ipc", 0x8000000), ("uts", 0x4000000)),
)
# What a task that gives none of its own gets.
SHELLS = (b"/bin/bash", b"/bin/sh")
TOLD = {signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
FROM_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN}
NO_TASK = 125


def refuse(words: str) -> NoReturn:
    """Say why nothing can be done, and end."""
    os.write(2, f"moulin: {words}\n".encode())
    sys.exit(NO_TASK)


def read(path: str) -> bytes:
    """Return a whole file, empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def stat_fields(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third on; empty for no such process."""
    return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


class Task:
    """The running task of a step directory, found by the record that its shim left."""

    def __init__(self, directory: str) -> None:
        lines = read(f"{directory}/started").decode(errors="replace").splitlines()
        record = dict(line.partition(" ")[::2] for line in lines)
        self.shim = int(record.get("pid", "0") or 0)
        self.ticks = record.get("started_ticks", "").encode()
        if record.get("by") != "shim" or not self.is_live() or os.path.exists(f"{directory}/exit"):
            refuse("the task does not run here")
        spec = read(f"{directory}/spec").split(b"\0")
        given = dict(zip(spec[0:-1:2], spec[1::2], strict=False))
        self.group = os.fsdecode(given.get(b"cgroup", b""))

    def is_live(self) -> bool:
        """Say whether the task's shim is still the process it was."""
        fields = stat_fields(self.shim)
        return len(fields) > 19 and fields[19] == self.ticks and fields[0] != b"Z"

    def processes(self) -> list[int]:
        """Return the task's living processes, nearest to its shim first, by a scan of /proc."""
        return descendants(self.shim)

    def first(self) -> int:
        """Return the task's own first process, once it has become its program."""
        until_s = time.monotonic() + READY_S
        while time.monotonic() < until_s and self.is_live():
            for pid in self.processes():
                is_program = read(f"/proc/{pid}/environ").find(b"MOULIN_STEP_ID=") >= 0
                if is_program and int(stat_fields(pid)[1]) == self.shim:
                    return pid
            time.sleep(0.05)
        refuse("the task has not begun, or has ended")

    def inside(self) -> int:
        """Return the process to be beside: of a container the first one in it, else the task's first.

        What makes a container's namespaces is not yet in all of them; its first process is.
        """
        first = self.first()
        contained = [pid for pid in self.processes() if is_apart(pid, self.shim, "mnt")]
        numbered = [pid for pid in contained if is_apart(pid, self.shim, "pid")]
        return next(iter(numbered or contained), first)


def descendants(root: int) -> list[int]:
    """Return all living descendants of a process, children before theirs."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        fields = stat_fields(int(name)) if name.isdigit() else []
        if fields and fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(name))
    found = sorted(children.get(root, ()))
    for pid in found:
        found.extend(sorted(children.get(pid, ())))
    return found


def namespace(pid: int, kind: str) -> str:
    """Return the name of a process's namespace, empty when it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def is_apart(pid: int, other: int, kind: str) -> bool:
    """Say whether two processes are in different namespaces, as far as can be read."""
    return namespace(pid, kind) not in ("", namespace(other, kind))


def join_namespaces(pid: int, libc: ctypes.CDLL) -> None:
    """Join those of a process that are not ours; its user's first, which gives the right to the others."""
    wanted = [
        (os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), kind, flag)
        for kind, flag in NAMESPACES
        if is_apart(pid, os.getpid(), kind)
    ]
    for fd, kind, flag in wanted:
        if libc.setns(fd, flag) != 0:
            number = ctypes.get_errno()
            refuse(f"cannot enter the {kind} namespace of its container: {os.strerror(number)}")
        os.close(fd)


def join(pid: int, group: str, libc: ctypes.CDLL) -> dict[bytes, bytes]:
    """Put this process where another is; return the environment that one was started with."""
    env = dict(
        pair.partition(b"=")[::2] for pair in read(f"/proc/{pid}/environ").split(b"\0") if pair
    )
    os.sched_setaffinity(0, os.sched_getaffinity(pid))
    if group:
        write(f"{group}/cgroup.procs", b"0")
    folder = os.open(f"/proc/{pid}/cwd", os.O_RDONLY | os.O_DIRECTORY)
    join_namespaces(pid, libc)
    try:
        os.fchdir(folder)
    except OSError:
        os.chdir("/")
    os.close(folder)
    return env


def write(path: str, data: bytes) -> None:
    """Write a control file; what the system does not let us, we do without."""
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(data)
    except OSError:
        return


def shell_of(env: dict[bytes, bytes]) -> list[bytes]:
    """Return the shell to start: the task's own where that is one, else the first there is."""
    for path in (env.get(b"SHELL", b""), *SHELLS):
        if path and os.access(path, os.X_OK):
            return [path]
    return [b"sh"]


def take_terminal() -> None:
    """Lead a session on the terminal that standard input is, unless that is so already."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        if os.getsid(0) != os.getpid():
            os.setsid()
        ctypes.CDLL(None).ioctl(0, TIOCSCTTY, 0)


def as_programs_expect() -> None:
    """Put signals to their defaults, whatever this process was begun with."""
    for number in (*FROM_TERMINAL, signal.SIGPIPE, signal.SIGHUP, signal.SIGTERM, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def become(task: Task, terminal: str, argv: list[bytes], libc: ctypes.CDLL) -> NoReturn:
    """Turn this fresh child into the command; the namespace of processes needs one more fork."""
    os.setsid() if not terminal else take_terminal()
    pid = task.inside()
    is_other_pids = is_apart(pid, os.getpid(), "pid")
    env = join(pid, task.group, libc)
    if terminal:
        env[b"TERM"] = os.fsencode(terminal)
    if is_other_pids:
        child = os.fork()
        if child:
            for number in FROM_TERMINAL:
                signal.signal(number, signal.SIG_IGN)
            os._exit(status_of(os.waitpid(child, 0)[1]))
    as_programs_expect()
    argv = argv or shell_of(env)
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as cause:
        os.write(2, b"moulin: cannot run %s: %s\n" % (argv[0], os.fsencode(str(cause.strerror))))
        os._exit(127 if isinstance(cause, FileNotFoundError) else 126)


def status_of(status: int) -> int:
    """Return a wait status as a shell would: 128 and the signal for what one ended."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def run(task: Task, terminal: str, argv: list[bytes]) -> int:
    """Run a command inside until it ends, the task does, or nobody is there any more."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
    child = os.fork()
    if child == 0:
        become(task, terminal, argv, libc)
    for number in FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    if not terminal:
        os.close(0)  # the command alone reads it, and sees its end
    reader = select.poll()
    reader.register(1, 0)
    while True:
        told = signal.sigtimedwait(TOLD, TICK_S)
        ended, code = os.waitpid(child, os.WNOHANG)
        status = status_of(code) if ended else why_leave(task, told, reader)
        if ended or status:
            break
    end_all()
    return status


def why_leave(task: Task, told: object, reader: "select.poll") -> int:
    """Return the status to leave with while the command runs, 0 to stay."""
    if not task.is_live():
        os.write(2, b"moulin: the task has ended\n")
        return 137
    is_asked = told is not None and getattr(told, "si_signo", 0) != signal.SIGCHLD
    return 129 if is_asked or reader.poll(0) else 0


def end_all() -> None:
    """End whatever was started in here and is left, politely first."""
    until_s = time.monotonic() + END_S
    number: int = signal.SIGHUP
    while time.monotonic() < until_s:
        left = descendants(os.getpid())
        for pid in left:
            try:
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)
            except OSError:
                continue
        reap()
        if not descendants(os.getpid()):
            return
        time.sleep(0.05)
        number = signal.SIGKILL if time.monotonic() > until_s - END_S / 2 else signal.SIGTERM


def reap() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


# Ports.


def listening(pid: int, port: int) -> set[str]:
    """Return the sockets that listen on a port in the network that a process sees."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in read(f"/proc/{pid}/net/{name}").splitlines()[1:]:
            fields = line.decode().split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def owns(task: Task, pid: int, port: int) -> bool:
    """Say whether a process of the task's own tree holds a socket that listens on a port."""
    wanted = listening(pid, port)
    for each in task.processes() if wanted else ():
        try:
            names = os.listdir(f"/proc/{each}/fd")
        except OSError:
            continue
        for name in names:
            try:
                if os.readlink(f"/proc/{each}/fd/{name}") in wanted:
                    return True
            except OSError:
                continue
    return False


class Relay:
    """Connections to one port of the task, as frames over standard input and output."""

    def __init__(self, task: Task, port: int) -> None:
        self.task = task
        self.port = port
        self.inside = task.inside()
        self.streams: dict[int, socket.socket] = {}
        self.pending = b""

    def run(self) -> int:
        """Relay until standard input is hung up or the task ends."""
        libc = ctypes.CDLL(None, use_errno=True)
        if not owns(self.task, self.inside, self.port):
            refuse(f"no process of the task listens on port {self.port}")
        join_network(self.inside, libc)
        send(HEAD.pack(0, OPEN, 0))
        while self.task.is_live():
            known = {made.fileno(): stream for stream, made in self.streams.items()}
            for fd in select.select([0, *known], [], [], 1.0)[0]:
                if fd == 0 and not self.take():
                    return 0
                if fd in known:
                    self.answer(known[fd])
        os.write(2, b"moulin: the task has ended\n")
        return 137

    def take(self) -> bool:
        """Take frames from the client; return whether more can come."""
        data = os.read(0, CHUNK)
        if not data:
            return False
        self.pending += data
        while len(self.pending) >= HEAD.size:
            stream, kind, size = HEAD.unpack_from(self.pending)
            if len(self.pending) < HEAD.size + size:
                break
            body = self.pending[HEAD.size : HEAD.size + size]
            self.pending = self.pending[HEAD.size + size :]
            self.give(stream, kind, body)
        return True

    def give(self, stream: int, kind: int, body: bytes) -> None:
        """Pass a frame on to its connection, which one of kind OPEN makes."""
        found = self.streams.get(stream)
        if kind == OPEN and found is None:
            self.connect(stream)
        if found is None:
            return
        try:
            if kind == END:
                found.shutdown(socket.SHUT_WR)
            else:
                found.sendall(body)
        except OSError:
            self.close(stream)

    def connect(self, stream: int) -> None:
        """Connect to the port, if it is still the task's; a stream that cannot be is ended at once."""
        is_allowed = len(self.streams) < STREAMS_MAX and owns(self.task, self.inside, self.port)
        for address in ("127.0.0.1", "::1") if is_allowed else ():
            try:
                made = socket.create_connection((address, self.port), 5.0)
            except OSError:
                continue
            made.settimeout(30.0)
            self.streams[stream] = made
            return
        self.close(stream)

    def answer(self, stream: int) -> None:
        """Pass what a connection says on to the client."""
        made = self.streams.get(stream)
        if made is None:
            return
        try:
            data = made.recv(CHUNK)
        except OSError:
            data = b""
        if data:
            send(HEAD.pack(stream, DATA, len(data)) + data)
        else:
            self.close(stream)

    def close(self, stream: int) -> None:
        """End a stream, and tell the client."""
        found = self.streams.pop(stream, None)
        if found is not None:
            found.close()
        send(HEAD.pack(stream, END, 0))


def send(data: bytes) -> None:
    """Write all of it to standard output."""
    while data:
        data = data[os.write(1, data) :]


def join_network(pid: int, libc: ctypes.CDLL) -> None:
    """Join the network of a container, with its user where only that may."""
    if not is_apart(pid, os.getpid(), "net"):
        return
    fds = [
        (os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), flag)
        for kind, flag in (NAMESPACES[0], NAMESPACES[3])
        if is_apart(pid, os.getpid(), kind)
    ]
    for fd, flag in fds:
        if libc.setns(fd, flag) != 0:
            refuse(f"cannot enter the network of its container: {os.strerror(ctypes.get_errno())}")


def main() -> int:
    """Do what the arguments say."""
    directory, verb, *rest = sys.argv[1:]
    if verb == "terminal":
        take_terminal()
        as_programs_expect()
        os.execvp(rest[0], rest)
    task = Task(directory)
    if verb == "forward":
        return Relay(task, int(rest[0])).run()
    return run(task, rest[0], [os.fsencode(word) for word in rest[1:]])


if __name__ == "__main__":
    sys.exit(main())
