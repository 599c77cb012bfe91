"""Own one task: start it at most once, keep its process tree together, record how it ended.

Run by path, `python -I -S -E shim.py STEP_DIRECTORY LOCK_FD`, as a bare file that imports nothing of
Moulin: one lives beside every task, so it must stay small (about 9 MB resident, 3 MB its own). It never
retries, never talks to a network, and reads of its environment only what the specification passes on.

Without LOCK_FD it stays where it was started, under another system's launcher (a Slurm job): it
holds no record lock, which shared file systems may not have, writes the task's log itself, and
ends with the task's status. SIGCONT, which programs ignore, is how it is told to look at its files.

How it keeps the promise of the engine's port:
- the `started` record is made with link(2), which succeeds once, with its content, on disk;
- a record lock on `lock` lives exactly as long as this process, whatever its pid is reused for;
- as child subreaper it inherits every orphan of the task, so "no children left" means that the
  whole tree has ended, also what called setsid. The kernel offers that only through prctl:
  ctypes adds 0.6 MB here, an extra exec of a second interpreter would add 15 ms to every start;
- the task's first process is killed by the kernel when this process dies (PR_SET_PDEATHSIG); the
  rest of the tree is then found and ended by the engine before it calls the step gone.

`_signal` is the C half of `signal`, whose enums would cost 0.8 MB for each task.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found,unused-ignore]
import ctypes
import os
import sys
import time

# What a launcher that starts a step once more is told, and so never takes for the task's own success.
BEGUN_BEFORE = 121
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TICK_S = 1.0
TICK_NEAR_LIMIT_S = 0.1
TICK_ENDING_S = 0.02
TOLD_LATE_S = 0.5
TICK_UNSEEN_S = 0.2
# A container tool that is to stop has so long to start its program, and then to clean up after it.
TOOL_STARTING_S = 3.0
TOOL_ENDING_S = 5.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LOOKING = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGCONT}
# Ignored by Python, or because Moulin was begun in the background: what is ignored outlives an exec.
DEFAULTED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
WAKING = LOOKING | {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def read_spec(data: bytes) -> dict[bytes, list[bytes]]:
    r"""Return the values of each name, in order, from NUL-ended names and values.

    >>> read_spec(b"argv\0echo\0argv\0hi\0")
    {b'argv': [b'echo', b'hi']}
    """
    parts = data.split(b"\0")
    spec: dict[bytes, list[bytes]] = {}
    for name, value in zip(parts[0:-1:2], parts[1::2]):  # noqa: B905 - `strict` is not in Python 3.8
        spec.setdefault(name, []).append(value)
    return spec


def read_bytes(path: bytes | str) -> bytes:
    """Return a whole small file, empty when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(fd)


def write_durably(name: str, data: bytes) -> str:
    """Write a new file beside `name` so that it survives a power cut; return its name."""
    temporary = f"{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    return temporary


def sync_directory() -> None:
    """Make the names in the current directory durable."""
    fd = os.open(".", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def stat_fields(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third on; empty when there is no such process."""
    return read_bytes(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def descendants(root: int) -> list[int]:
    """Return all living descendants of a process, by a scan of /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def proportional_bytes(pid: int) -> int:
    """Return memory that only ending the process would free: its share of anonymous and shared."""
    wanted = (b"Pss_Anon:", b"Pss_Shmem:")
    lines = read_bytes(f"/proc/{pid}/smaps_rollup").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))


def is_contained(pid: int) -> bool:
    """Say whether a process is of a program in a container: `crun` has begun it, below another root."""
    try:
        there, here = os.stat(f"/proc/{pid}/root"), os.stat("/")
    except OSError:
        return False
    is_begun = read_bytes(f"/proc/{pid}/comm") != b"crun\n"  # killed sooner, Podman waits for ever
    return is_begun and (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def marked(own: list[int]) -> list[int]:
    """Return the processes on this machine that carry the step's variable, without our own."""
    mark = b"MOULIN_STEP_DIR=" + os.getcwdb()
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid(), *own}
    return [pid for pid in others if mark in read_bytes(f"/proc/{pid}/environ").split(b"\0")]


def is_init(pid: int) -> bool:
    """Say whether a process is the first of a process namespace below ours."""
    lines = read_bytes(f"/proc/{pid}/status").splitlines()
    numbers = next((line.split()[1:] for line in lines if line.startswith(b"NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == b"1"


class Group:
    """The task's cgroup, when there is one; a path that may be empty."""

    def __init__(self, path: bytes, memory_limit: bytes) -> None:
        self.path = path
        self.limits_memory = False
        if path:
            self._make(memory_limit)

    def _make(self, memory_limit: bytes) -> None:
        try:
            os.mkdir(self.path, 0o755)
        except FileExistsError:
            pass
        except OSError:
            self.path = b""
            return
        self.limits_memory = bool(memory_limit) and self.write(b"memory.max", memory_limit)
        if self.limits_memory:
            self.write(b"memory.oom.group", b"1")
            self.write(b"memory.swap.max", b"0")

    def write(self, name: bytes, value: bytes) -> bool:
        """Write one control file; return whether the kernel took it."""
        if not self.path:
            return False
        try:
            fd = os.open(self.path + b"/" + name, os.O_WRONLY)
        except OSError:
            return False
        try:
            os.write(fd, value)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def number(self, name: bytes, key: bytes = b"") -> int:
        """Return a number from a control file, or the one after `key`; 0 when there is none."""
        data = read_bytes(self.path + b"/" + name) if self.path else b""
        for line in data.splitlines():
            first, _, rest = line.partition(b" ")
            value = rest if key else first
            if first == (key or first) and value.isdigit():
                return int(value)
        return 0

    def remove(self) -> None:
        """Remove the group, which the kernel allows once its last process has been reaped."""
        try:
            if self.path:
                os.rmdir(self.path)
        except OSError:
            return


class Owner:
    """One task from its start to its exit record; the current directory is the step's."""

    def __init__(
        self, spec: dict[bytes, list[bytes]], started_ns: int, *, is_told_with_task: bool = False
    ) -> None:
        self.spec = spec
        self.is_told_with_task = is_told_with_task
        self.stop_signal = int(spec.get(b"stop_signal", [b"15"])[0])
        self.started_ns = started_ns
        limit = spec[b"memory_limit_bytes"][0]
        self.limit_bytes = int(limit)
        method = spec[b"memory_method"][0]
        self.group = Group(spec[b"cgroup"][0], limit if method == b"cgroup-v2" else b"")
        self.task = 0
        # "inside": the program is below a container tool; "marked": another system's, on this node.
        self.reach = spec.get(b"container", [b""])[0]
        self.is_untold = False
        self.tool_told_at = self.tool_kill_at = 0.0
        self.status: int | None = None
        self.kill_rounds = 0
        self.evidence = b"exit status"
        self.kill_at = 0.0
        self.is_stopping = False
        self.reaped_cpu_ns = self.cpu_ns = 0
        self.memory_bytes_max = 0
        self.sampled_at = 0.0
        self.tick_s = TICK_UNSEEN_S if self.reach else TICK_S
        self.utc_anchor_ns = time.time_ns() - time.monotonic_ns()
        self.usage = os.open("usage", os.O_WRONLY | os.O_CREAT, 0o600)

    def utc_ns(self) -> int:
        """Return UTC as one reading of the wall clock plus the monotonic time since."""
        return self.utc_anchor_ns + time.monotonic_ns()

    def start(self, libc: ctypes.CDLL) -> None:
        """Fork the task's first process in its own session."""
        me = os.getpid()
        if signal.sigpending():
            self.is_told_with_task = False  # what came so early reached this process alone
        self.task = os.fork()
        if self.task == 0:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == me:
                become_task(self.spec, self.group)
            os._exit(125)

    def pids(self) -> list[int]:
        """Return the living processes of the task; the first may not have joined its group yet."""
        if not self.group.path:
            return descendants(os.getpid())
        listed = [int(pid) for pid in read_bytes(self.group.path + b"/cgroup.procs").split()]
        is_missing = self.status is None and self.task not in listed
        return [self.task, *listed] if is_missing else listed

    def send(self, pids: list[int], number: int) -> None:
        """Send a signal to each process that is still there."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except OSError:
                continue

    def inside(self) -> list[int]:
        """Return the processes of the program; without a container those are all."""
        if self.reach == b"marked":
            return marked(descendants(os.getpid()))
        return [pid for pid in self.pids() if not self.reach or is_contained(pid)]

    def tell(self) -> None:
        """Send the stop signal to the program; to its container tool where no program appears."""
        told = self.inside()
        if self.reach:
            told = [pid for pid in told if not is_init(pid)]
            if not told and self.status is None and time.monotonic() >= self.tool_told_at:
                told = [self.task]
        self.is_untold = not told
        self.send(told, self.stop_signal)
        self.send(told, signal.SIGCONT)

    def kill_inside(self) -> bool:
        """Kill the program alone, so that its tool cleans up; return whether the tool has had its time."""
        now = time.monotonic()
        self.tool_kill_at = self.tool_kill_at or now + TOOL_ENDING_S
        self.send(self.inside(), signal.SIGKILL)
        return now >= self.tool_kill_at

    def kill(self) -> None:
        """Kill the tree; called until nothing is left, so a fork in between is caught next time."""
        if self.reach and not self.kill_inside():
            return
        is_atomic = self.group.write(b"cgroup.kill", b"1")
        # A privileged task can leave its group but not its ancestry: look there now and then.
        is_scan_due = not is_atomic or self.kill_rounds % 10 == 9
        self.kill_rounds += 1
        self.send(descendants(os.getpid()) if is_scan_due else self.pids(), signal.SIGKILL)

    def reap(self) -> bool:
        """Collect ended processes; return whether any process of the tree is left."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.reaped_cpu_ns += int((used.ru_utime + used.ru_stime) * 1e9)
            if not self.reach:  # else it may be the tool's
                self.memory_bytes_max = max(self.memory_bytes_max, used.ru_maxrss * 1024)
            if pid == self.task:
                self.status = status

    def run(self) -> None:
        """Wait for the end of the whole tree, obeying stop requests and the memory limit."""
        while self.reap():
            self.obey_stop()
            if self.is_untold:
                self.tell()
            now = time.monotonic()
            # As in a container, what the first process leaves behind ends with it; during a stop
            # the grace belongs to the whole tree, as `sh -c` dies sooner than what it started.
            if now >= self.kill_at if self.is_stopping else self.status is not None:
                self.kill()
            if now - self.sampled_at >= self.tick_s:
                self.sample()
                self.sampled_at = now
            is_ending = self.is_stopping or self.status is not None
            told = signal.sigtimedwait(WAKING, TICK_ENDING_S if is_ending else self.tick_s)
            if told is not None and told.si_signo not in LOOKING:
                grace_s = int(self.spec[b"grace_ns"][0]) / 1e9
                self.begin_stop(grace_s, b"shim was asked to end", is_told=self.is_told_with_task)
            elif told is not None and told.si_signo == signal.SIGCONT:
                os.listdir(".")  # a network file system then looks again for what was not there
        self.hear_late()
        self.read_group()
        # The group is removed before the record is written: no reader may see time run backwards.
        self.publish()

    def hear_late(self) -> None:
        """Learn why a signal ended the task: a launcher's reaches it before this process."""
        is_open = self.is_told_with_task and not self.is_stopping
        if is_open and os.WIFSIGNALED(self.status or 0):
            told = signal.sigtimedwait(WAKING - LOOKING, TOLD_LATE_S)
            if told is not None:
                self.begin_stop(0.0, b"shim was asked to end", is_told=True)

    def obey_stop(self) -> None:
        """Follow the `stop` request on disk, which outlives the engine that wrote it."""
        request = read_bytes("stop")
        if request:
            self.begin_stop(int(request) / 1e9, b"stopped on request")

    def begin_stop(self, grace_s: float, evidence: bytes, *, is_told: bool = False) -> None:
        """Ask the tree to end and set when it is forced; asked again, only sooner is obeyed.

        `is_told` says that the tree has got the signal from whoever sent it here.
        """
        kill_at = time.monotonic() + grace_s
        if self.is_stopping:
            self.kill_at = min(self.kill_at, kill_at)
            return
        self.is_stopping = True
        self.evidence = evidence
        self.kill_at = kill_at
        self.tool_told_at = time.monotonic() + TOOL_STARTING_S
        if grace_s > 0 and not is_told:
            self.tell()

    def sample(self) -> None:
        """Read CPU time and memory of the tree, publish both, and enforce the memory limit."""
        ticks = resident = 0
        pids = self.inside()
        for pid in {*self.pids(), *pids}:
            fields = stat_fields(pid)
            if fields:
                ticks += sum(int(field) for field in fields[11:15])
                resident += int(fields[21]) * PAGE_BYTES if pid in pids else 0
        self.cpu_ns = max(self.cpu_ns, self.reaped_cpu_ns + ticks * 1_000_000_000 // TICKS_PER_S)
        self.memory_bytes_max = max(self.memory_bytes_max, resident)
        self.read_group()
        self.publish()
        self.tick_s = TICK_UNSEEN_S if self.reach and not pids else TICK_S
        if self.limit_bytes and not self.group.limits_memory:
            if 2 * resident > self.limit_bytes:
                self.tick_s = TICK_NEAR_LIMIT_S
            if resident > self.limit_bytes:
                self.enforce_limit(pids, resident)

    def publish(self) -> None:
        """Write the reading twice in one line, so that a reader recognises a torn one."""
        pair = b"%d %d" % (self.cpu_ns, self.memory_bytes_max)
        try:
            os.pwrite(self.usage, (pair + b" " + pair).ljust(95) + b"\n", 0)
        except OSError:
            return  # a full disk costs a reading, never the task

    def enforce_limit(self, pids: list[int], resident: int) -> None:
        """End the tree if what it alone holds, pages shared inside it counted once, is too much."""
        held = sum(proportional_bytes(pid) for pid in pids) or resident
        if held > self.limit_bytes and not self.is_stopping:
            words = b"memory limit of %d bytes exceeded: %d bytes held (rss-watch)"
            self.begin_stop(0.0, words % (self.limit_bytes, held))

    def read_group(self) -> None:
        """Prefer the kernel's own account of the group, which misses nothing."""
        usage_ns = self.group.number(b"cpu.stat", b"usage_usec") * 1000
        self.cpu_ns = usage_ns or max(self.cpu_ns, self.reaped_cpu_ns)
        self.memory_bytes_max = max(self.memory_bytes_max, self.group.number(b"memory.peak"))
        if self.group.limits_memory and self.group.number(b"memory.events", b"oom_kill"):
            self.evidence = b"memory limit of %d bytes exceeded (cgroup-v2)" % self.limit_bytes

    def record_exit(self) -> int:
        """Write the exit record whole or not at all; a full disk delays it, it is never dropped."""
        status = self.status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 128 + number if number else os.WEXITSTATUS(status)
        ended = (self.utc_ns(), self.cpu_ns, self.memory_bytes_max, self.evidence)
        record = (
            b"phase exited\nexit_code %d\nsignal %d\nstarted_at_ns %d\nended_at_ns %d\n"
            b"cpu_ns %d\nmemory_bytes_max %d\nevidence %s\n"
        ) % (code, number, self.started_ns, *ended)
        while True:
            try:
                os.rename(write_durably("exit", record), "exit")
                sync_directory()
                return code
            except OSError:
                time.sleep(TICK_S)


def become_task(spec: dict[bytes, list[bytes]], group: Group) -> None:
    """Turn this fresh child into the task's program; returns only after saying why it cannot."""
    os.setsid()
    group.write(b"cgroup.procs", b"0")
    # A program expects them at their defaults.
    for number in DEFAULTED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    argv = spec[b"argv"]
    env = environment(spec)
    try:
        if spec.get(b"secrets") == [b"1"]:
            env.update(fetched_secrets())
    except OSError as cause:
        os.write(2, b"moulin: its secrets are gone: %s\n" % os.fsencode(str(cause.strerror)))
        os._exit(125)
    try:
        os.chdir(spec[b"workdir"][0])
        os.execvpe(argv[0], argv, env)
    except OSError as cause:
        os.write(2, b"moulin: cannot run %s: %s\n" % (argv[0], os.fsencode(str(cause.strerror))))
        os._exit(127 if isinstance(cause, FileNotFoundError) else 126)


def fetched_secrets() -> dict[bytes, bytes]:
    """Return the variables of the step's secrets; those wanted as files hold the paths of such.

    Only the process that becomes the program calls this: the shim itself never holds a value.
    """
    try:
        with open("secrets", "rb", buffering=0) as file:
            handed = read_spec(file.readall())
    finally:
        remove_secrets()
    env = dict(pair.partition(b"=")[::2] for pair in handed.get(b"env", []))
    for pair in handed.get(b"file", []):
        name, _, value = pair.partition(b"=")
        os.makedirs("secret", 0o700, exist_ok=True)
        fd = os.open(b"secret/" + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:
            file.write(value)
        env[name] = os.getcwdb() + b"/secret/" + name
    return env


def remove_secrets() -> None:
    """Remove what is there of the step's secrets; a disk that refuses must not hold up its end."""
    try:
        for name in os.listdir("secret") if os.path.isdir("secret") else ():
            os.unlink("secret/" + name)
        for path, remove in (("secrets", os.unlink), ("secret", os.rmdir)):
            if os.path.lexists(path):
                remove(path)
    except OSError as cause:
        os.write(2, b"moulin: secrets are left: %s\n" % os.fsencode(str(cause.strerror)))


def environment(spec: dict[bytes, list[bytes]]) -> dict[bytes, bytes]:
    r"""Return the task's variables: defaults, then what is passed on from here, then its own.

    A name in `pass` that ends with `*` stands for all that begin so.
    """
    env = dict(pair.partition(b"=")[::2] for pair in spec.get(b"default_env", []))
    names = spec.get(b"pass", [])
    begins = tuple(name[:-1] for name in names if name.endswith(b"*"))
    here = os.environb if names else {}
    env.update(pair for pair in here.items() if pair[0] in names or pair[0].startswith(begins))
    env.update(pair.partition(b"=")[::2] for pair in spec.get(b"env", []))
    return env


def hold_lock() -> bool:
    """Take the record lock that says that this process lives; return whether it was free."""
    lock = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.lockf(lock, os.F_TLOCK, 0)
    except OSError:
        return False
    return True


def claim_step(spec: dict[bytes, list[bytes]]) -> int:
    """Take the step for this process; return when, 0 if it was started or fenced before."""
    at_ns = time.time_ns()
    own = (os.getpid(), stat_fields(os.getpid())[19], spec[b"boot_id"][0], at_ns)
    # Where Slurm chose the machine, nobody else knows which it was.
    host = os.environb.get(b"SLURMD_NODENAME", b"")
    record = b"by shim\npid %d\nstarted_ticks %s\nboot_id %s\nat_ns %d\nhost %s\n" % (*own, host)
    temporary = write_durably("started", record)
    try:
        os.link(temporary, "started")
    except FileExistsError:
        return 0
    finally:
        os.unlink(temporary)
    sync_directory()
    return at_ns


def own(starter: int, lock_fd: int) -> None:
    """Claim the step, tell the starter, and stay with the task until its record is written."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    spec = read_spec(read_spec_file())
    started_ns = claim_step(spec) if hold_lock() else 0
    os.close(lock_fd)
    os.write(starter, b"1")
    os.close(starter)
    if started_ns:
        see_through(Owner(spec, started_ns))


def stay() -> int:
    """Own the step in this very process, whoever started it; return the task's status.

    The lock file's place is taken by the launcher's own knowledge of whether this process lives.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    spec = read_spec(read_spec_file())
    started_ns = claim_step(spec)
    if not started_ns:
        return BEGUN_BEFORE
    # Slurm tells the whole tree, but where it tracks processes by cgroup only what it started itself.
    is_told_with_task = b"/step_" not in read_bytes("/proc/self/cgroup")
    return see_through(Owner(spec, started_ns, is_told_with_task=is_told_with_task))


def see_through(owner: Owner) -> int:
    """Start the task, wait for the end of its tree and record it; return its status."""
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        os.write(2, b"moulin: this kernel has no child subreaper\n")
    cpus = owner.spec[b"cpus"][0]
    if cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(b",")})
    owner.start(libc)
    owner.run()
    owner.group.remove()
    remove_secrets()
    return owner.record_exit()


def read_spec_file() -> bytes:
    """Return the specification; it may be larger than one read."""
    with open("spec", "rb", buffering=0) as file:
        return file.readall()


def main() -> int:
    """Fork the owner away from whoever started this, and wait for its word; or stay."""
    os.chdir(sys.argv[1])
    if len(sys.argv) == 2:
        return stay()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        own(writer, int(sys.argv[2]))
        return 0
    os.close(writer)
    return 0 if os.read(reader, 1) else 1


if __name__ == "__main__":
    sys.exit(main())
