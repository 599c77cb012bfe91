"""What the steps of the cluster's demo hand on to one another."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from moulin.app.demo.cluster.own_slurm import OwnSlurm
from moulin.app.demo.stage import Stage
from moulin.domain.control import KeyWanted
from moulin.sdk import Credentials, Moulin

HERE: Final = Path(__file__).parent
TEAMS_FILE: Final = HERE / "teams.yaml"
FIRST_TEAMS_FILE: Final = HERE / "first" / "teams.yaml"
PHYSICS: Final = "physics"
BIOLOGY: Final = "biology"


@dataclass(slots=True, kw_only=True)
class ClusterStage(Stage):
    """A running Moulin in front of a Slurm of its own; the first project is the physicists'."""

    first_file: Path = FIRST_TEAMS_FILE
    at_end: ExitStack = field(default_factory=ExitStack)
    slurm: OwnSlurm | None = None
    biologists: Moulin | None = None

    @property
    def cluster(self) -> OwnSlurm:
        """Return the Slurm that the first step started."""
        assert self.slurm is not None
        return self.slurm

    @property
    def as_biologist(self) -> Moulin:
        """Return the client of the second team."""
        assert self.biologists is not None
        return self.biologists

    def close(self) -> None:
        """End Slurm and what else was started beside Moulin; safe to repeat."""
        self.at_end.close()


def client_of(stage: ClusterStage, project: str) -> Moulin:
    """Return a client with a new key of a project; it is closed with the stage."""
    issued = stage.as_operator.keys.create(KeyWanted(name=f"{project}-demo"), project=project)
    known = stage.as_tenant.credentials
    client = Moulin(
        credentials=Credentials(
            control_url=known.control_url,
            gateway_url=known.gateway_url,
            api_key=issued.secret,
            project=project,
        )
    )
    stage.at_end.callback(client.close)
    return client
