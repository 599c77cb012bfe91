"""Let the tenant of a leased node log in: an SSH server of its own, for its keys alone.

Run by path, `python -I -S -E login.py HOST`, as the program of a leased node's task: a bare file that
imports nothing of Moulin. It listens on a free port of HOST and starts `sshd -i` for each connection,
so that no port is ever guessed. The host key is made here and, like the tenant's keys and the server's
configuration, lives only in the memory of this process: none is left when it ends, however it ends.

It tells those who are logged in before the time is over, and ends when it is asked to. Whatever a
tenant leaves running is ended with the task, by its shim.
"""

import contextlib
import fcntl
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time

KEYS = "MOULIN_LEASE_KEYS"
LIMIT = "MOULIN_LEASE_LIMIT_S"
WARNING = "MOULIN_LEASE_WARN_S"
OWN = (KEYS, LIMIT, WARNING)
# What a login shell finds for itself, or nobody should.
NOT_PASSED_ON = (*OWN, "HOME", "USER", "LOGNAME", "SHELL", "MAIL", "PWD", "OLDPWD", "SHLVL", "_")
PLACES = (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin", "/usr/local/sbin")
# Connections at one time; each that shows no key in time is closed by its server.
CONNECTIONS_MAX = 200
TICK_S = 1.0
# F_ADD_SEALS, and what it forbids: further seals, shrinking, growing, writing.
ADD_SEALS = 1033
SEALS = 1 | 2 | 4 | 8
LAST_WARNING_S = 60
CONFIGURATION = """\
HostKey {host_key}
AuthorizedKeysFile {keys}
AllowUsers {user}
PidFile none
UsePAM no
StrictModes no
LogLevel VERBOSE
LoginGraceTime 30
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
PermitEmptyPasswords no
PermitRootLogin prohibit-password
PermitUserEnvironment no
PermitUserRC no
AllowAgentForwarding no
AllowStreamLocalForwarding no
X11Forwarding no
PermitTunnel no
GatewayPorts no
AllowTcpForwarding local
PermitOpen 127.0.0.1:* localhost:* [::1]:*
PermitListen none
AcceptEnv LANG LC_*
PrintMotd no
PrintLastLog no
UseDNS no
ClientAliveInterval 30
Subsystem sftp internal-sftp
"""


def find(program: str) -> str:
    """Return where a program is, empty when it is nowhere."""
    paths = (f"{place}/{program}" for place in PLACES if place.startswith("/"))
    return next((path for path in paths if os.access(path, os.X_OK)), "")


def in_memory(name: str, data: bytes) -> str:
    """Keep bytes in this process's memory; return a path by which its own user opens them."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.fchmod(fd, 0o600)
    os.write(fd, data)
    fcntl.fcntl(fd, ADD_SEALS, SEALS)  # who else is this user may read it, nobody changes it
    return f"/proc/{os.getpid()}/fd/{fd}"


def make_host_key(keygen: str) -> tuple[bytes, str]:
    """Return a new host key: the private half, and the public one as `type base64`."""
    with tempfile.TemporaryDirectory(prefix="moulin-") as folder:
        path = f"{folder}/key"
        words = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        with open(path, "rb") as private, open(f"{path}.pub") as public:
            return private.read(), " ".join(public.read().split()[:2])


def session_variables() -> str:
    """Return what sessions get of this task's variables, as sshd's configuration says it."""
    pairs = (
        f'"{name}={value}"'
        for name, value in sorted(os.environ.items())
        if name not in NOT_PASSED_ON and value.isprintable() and '"' not in value + name
        if "\\" not in value
    )
    return f"SetEnv {' '.join(pairs)}\n"


def listen(host: str) -> socket.socket:
    """Return a listener on a free port of a host, or of all addresses where the name is not ours.

    Raises `OSError` when neither has one.
    """
    for wanted in (host, "0.0.0.0"):  # noqa: S104 - a node of a cluster that knows it by another name
        with contextlib.suppress(OSError):
            return socket.create_server((wanted, 0), backlog=64)
    raise OSError(f"cannot listen on {host}")


def announce(host: str, port: int, user: str, public_key: str) -> None:
    """Say where one logs in, whole or not at all."""
    path = os.environ["MOULIN_READY_FILE"]
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(f"{host}:{port} {user} {public_key}\n")
    os.rename(temporary, path)


def terminals() -> set[str]:
    """Return the terminals of everything that runs in this task."""
    parents: dict[int, int] = {}
    devices: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                parents[int(name)], devices[int(name)] = int(fields[1]), int(fields[4])
    shim, found = os.getppid(), set()
    for pid, device in devices.items():
        major, minor = os.major(device), os.minor(device)
        if not 136 <= major <= 143:
            continue
        above = pid
        while above > 1 and above != shim:
            above = parents.get(above, 0)
        if above == shim:
            found.add(f"/dev/pts/{(major - 136) * 256 + minor}")
    return found


def tell(words: str) -> None:
    """Write a line on every terminal of this task, and in its log."""
    sys.stderr.write(f"moulin: {words}\n")
    sys.stderr.flush()
    for path in sorted(terminals()):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                os.write(fd, f"\r\n\a[moulin] {words}\r\n".encode())
            finally:
                os.close(fd)


class Lease:
    """The time that is left, and who was told."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.limit_s = int(os.environ.get(LIMIT) or 0)
        self.warn_s = int(os.environ.get(WARNING) or 0)
        self.told_s: list[int] = []
        self.is_over = False

    def look(self) -> None:
        """Follow a new limit, and tell once for each point of time that has come."""
        path = f"{os.environ['MOULIN_STEP_DIR']}/time_limit"
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            limit_s = int(file.read())
            if limit_s > self.limit_s:
                self.limit_s, self.told_s = limit_s, []
                tell(f"this lease was extended to {limit_s} s after its start")
        left_s = self.limit_s - (time.monotonic() - self.began)
        due = [at for at in self.points() if left_s <= at and at not in self.told_s]
        if self.limit_s and due:
            self.told_s += due
            tell(f"this lease ends in {max(0, round(left_s))} s; what runs then is ended")

    def points(self) -> tuple[int, ...]:
        """Return how many seconds before the end somebody is told."""
        first = min(self.warn_s, self.limit_s // 4)
        return (first, LAST_WARNING_S) if first > LAST_WARNING_S else (first,)

    def end(self, *_signal: object) -> None:
        """Let the lease be over."""
        self.is_over = True


def serve(listener: socket.socket, command: list[str], lease: Lease) -> None:
    """Give each connection a server of its own until the lease is over."""
    servers: list[subprocess.Popen[bytes]] = []
    while not lease.is_over:
        servers = [server for server in servers if server.poll() is None]
        lease.look()
        if not select.select([listener], [], [], TICK_S)[0]:
            continue
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                if len(servers) < CONNECTIONS_MAX:
                    end = connection.fileno()
                    servers.append(subprocess.Popen(command, stdin=end, stdout=end))


def main() -> int:
    """Serve until asked to end; return the task's status."""
    host = sys.argv[1]
    sshd, keygen = find("sshd"), find("ssh-keygen")
    if not sshd or not keygen:
        sys.stderr.write("moulin: no sshd on this node: install openssh-server\n")
        return 127
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # as Debian's sshd insists
    lease = Lease()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lease.end)
    user = pwd.getpwuid(os.geteuid()).pw_name
    private, public = make_host_key(keygen)
    limited = "".join(
        f"restrict,pty,port-forwarding {key}\n" for key in os.environ[KEYS].splitlines()
    )
    text = CONFIGURATION.format(
        host_key=in_memory("host_key", private),
        keys=in_memory("keys", limited.encode()),
        user=user,
    )
    configuration = in_memory("configuration", (text + session_variables()).encode())
    with listen(host) as listener:
        announce(host, listener.getsockname()[1], user, public)
        serve(listener, [sshd, "-i", "-e", "-f", configuration], lease)
    tell("this lease is over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
