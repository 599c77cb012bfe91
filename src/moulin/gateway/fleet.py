"""What a gateway learns of one endpoint's replicas together, for as long as it has the endpoint.

It decides nothing: the retry budget and the patience with answers are `moulin.routing`'s.
"""

from collections.abc import Iterable

from moulin.domain.snapshot import ModelView
from moulin.routing.breaker import Patience
from moulin.routing.retry import RetryBudget


class Fleet:
    """Retries left, and how long answers take: of streams their head, of others the whole."""

    __slots__ = ("heads", "retries", "wholes")

    def __init__(self) -> None:
        self.retries = RetryBudget()
        self.heads = Patience()
        self.wholes = Patience()


def keep_fleets(fleets: dict[str, Fleet], models: Iterable[ModelView]) -> None:
    """Have a fleet for each endpoint of a snapshot, and none for others."""
    wanted = {model.endpoint: model for model in models}
    for endpoint in [each for each in fleets if each not in wanted]:
        del fleets[endpoint]
    for endpoint, model in wanted.items():
        fleet = fleets.setdefault(endpoint, Fleet())
        fleet.retries.resize(sum(replica.parallel_requests for replica in model.replicas))
