"""A whole Moulin in front of one pool, as benchmarks of engines use it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks._moulin import Running, up, wait_for
from benchmarks._plants import PROJECT, write_factory
from moulin.app.down import operator_credentials
from moulin.domain.workload import FINAL_WORKLOAD_STATES
from moulin.sdk import Moulin

READY_S_MAX: Final = 180.0


@dataclass(frozen=True)
class Front:
    """A Moulin and a client of it."""

    running: Running
    client: Moulin

    def is_over(self, workload: str) -> bool:
        """Say whether a workload ended."""
        return self.client.workloads.get(workload).state in FINAL_WORKLOAD_STATES


@contextlib.contextmanager
def moulin(
    folder: Path, pools: str, nodes: int, environment: Mapping[str, str] | None = None
) -> Iterator[Front]:
    """Run a Moulin until the block ends, from when it sees so many nodes."""
    factory = write_factory(folder, pools)
    data = folder / "data"
    with up(data, "--factory", str(factory), environment=environment) as running:
        credentials = operator_credentials(data, running.control_url)
        with Moulin(
            control_url=credentials.control_url, api_key=credentials.api_key, project=PROJECT
        ) as client:
            if not wait_for(lambda: reachable(client) >= nodes, READY_S_MAX):
                raise RuntimeError(f"{reachable(client)} of {nodes} nodes came")
            yield Front(running, client)


def reachable(client: Moulin) -> int:
    """Return how many nodes answer."""
    return sum(node.is_reachable for node in client.factory.nodes().items)
