"""A Slurm with accounting: MariaDB and slurmdbd beside the rest, private to a folder and by free ports.

Limits and associations are enforced, so what is written into Slurm's tree is seen to hold.
"""

import getpass
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.lacking import lacking
from tests.slurm_cluster import PATH, SlurmCluster, free_ports, missing_programs, running

PROGRAMS = ("mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "sacctmgr", "sacct")
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits
JobAcctGatherType=jobacct_gather/none
"""
DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""
GRANT = (
    "CREATE DATABASE slurm; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';"
    " CREATE USER slurm@localhost IDENTIFIED BY 'slurm';"
    " GRANT ALL ON slurm.* TO slurm@'127.0.0.1'; GRANT ALL ON slurm.* TO slurm@localhost;"
)


class AccountedCluster(SlurmCluster):
    """One node, a controller, slurmdbd and its database."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, nodes=1, prefix="a-")
        port, self._database_port = free_ports(2)
        configuration = folder / "slurm.conf"
        lines = [
            line
            for line in configuration.read_text().splitlines()
            if not line.startswith(("AccountingStorage", "JobAcctGather", "PartitionName=short"))
        ]
        lines.insert(1, ACCOUNTING.format(port=port, folder=folder).rstrip("\n"))
        configuration.write_text("\n".join(lines) + "\n")
        daemon = folder / "slurmdbd.conf"
        daemon.write_text(
            DAEMON.format(
                folder=folder,
                port=port,
                user=getpass.getuser(),
                database_port=self._database_port,
            )
            + (f"PluginDir={self.plugins}\n" if self.plugins else "")
        )
        daemon.chmod(0o600)

    def start(self) -> None:
        """Start the database, slurmdbd, and then the cluster that is accounted for."""
        self._start_munge()
        self._start_database()
        self._spawn("slurmdbd", "-D")
        self.wait_for(
            lambda: "root" in self.run("sacctmgr", "-nP", "show", "account"), "no slurmdbd"
        )
        self.run("sacctmgr", "-i", "add", "cluster", "mill")
        self.start_controller()
        for name in self.names:
            self.start_node(name)
        self.wait_for(lambda: self.states() == {"idle"}, "the nodes are not idle")

    def stop(self) -> None:
        """End everything by its process id, the database last."""
        munged = self._processes.pop("munged", None)
        super().stop()
        self._end("slurmdbd", signal.SIGTERM)
        self._end("mariadbd", signal.SIGTERM)
        if munged is not None:
            self._processes["munged"] = munged
            self._end("munged", signal.SIGTERM)

    def _start_database(self) -> None:
        data = self.folder / "database"
        make = (
            *("mariadb-install-db", "--no-defaults", f"--user={getpass.getuser()}"),
            *(f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"),
        )
        subprocess.run(make, env={"PATH": self.path}, check=True, capture_output=True, timeout=120)
        socket = self.folder / "database.socket"
        self._spawn(
            "mariadbd",
            "--no-defaults",
            f"--user={getpass.getuser()}",
            f"--datadir={data}",
            f"--socket={socket}",
            "--bind-address=127.0.0.1",
            f"--port={self._database_port}",
            f"--pid-file={self.folder}/mariadbd.pid",
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"),
            *("--innodb-log-file-size=16M", "--performance-schema=0"),
        )
        ask = ("mariadb", "--no-defaults", "-S", str(socket), "-u", "root", "-e")
        self.wait_for(lambda: self.run(*ask, "SELECT 'ready'") != "", "the database is not there")
        self.run(*ask, GRANT)


def missing_accounting() -> Sequence[str]:
    """Return the programs of accounting that are not installed here."""
    found = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return [*missing_programs(), *found]


@pytest.fixture(scope="session")
def accounted_cluster() -> Iterator[AccountedCluster]:
    """Start a cluster with accounting once; people without it skip its tests, CI fails."""
    missing = missing_accounting()
    if missing:
        reason = f"no accounting ({', '.join(missing)}): apt-get install slurmdbd mariadb-server"
        lacking(reason)
    with running(AccountedCluster) as cluster:
        yield cluster
