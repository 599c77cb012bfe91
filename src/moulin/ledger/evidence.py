"""What the leader keeps of the evidence logs between cycles: one frontier per shard.

Never advances before the receipts are durable: `keep` is called after the commit.
"""

from dataclasses import dataclass, field

from moulin.domain.errors import check
from moulin.ledger.checkpoint import TreeHead
from moulin.ledger.merkle import Frontier, root
from moulin.ledger.receipts import shard_origin


@dataclass(slots=True, kw_only=True)
class Evidence:
    """The shards of one factory as far as they are durable."""

    factory: str
    frontiers: dict[str, Frontier] = field(default_factory=dict)

    def origin(self, site: str) -> str:
        """Return the shard that holds a site's receipts.

        Raises `InvalidSpec` for a name that cannot stand in a signed note.
        """
        return shard_origin(self.factory, site)

    def frontier(self, origin: str) -> Frontier:
        """Return a shard's frontier; a shard never written to is empty."""
        return self.frontiers.get(origin, Frontier())

    def head(self, origin: str) -> TreeHead:
        """Return a shard's state, to be signed as a checkpoint."""
        frontier = self.frontier(origin)
        return TreeHead(origin=origin, size=frontier.size, root=root(frontier))

    def keep(self, origin: str, frontier: Frontier) -> None:
        """Take over a frontier whose receipts are durable; raises `InvariantViolated` if it shrinks."""
        check(frontier.size >= self.frontier(origin).size, "an evidence log never shrinks")
        self.frontiers[origin] = frontier
