"""What the gateway counts about itself, as Prometheus text.

It names models and outcomes, never projects, keys or words; whoever reaches the port may read it.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moulin.gateway.usage import Used

if TYPE_CHECKING:
    from moulin.gateway.service import Service


class Counts:
    """Counters since the start of the process."""

    __slots__ = ("above_bound", "by_outcome", "fell_back", "refused", "retried", "tokens")

    def __init__(self) -> None:
        self.by_outcome: defaultdict[tuple[str, bytes], int] = defaultdict(int)
        self.tokens: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.retried = 0
        self.fell_back = 0
        self.refused = 0
        self.above_bound = 0

    def ended(self, model: str, outcome: bytes, amount: Used) -> None:
        """Count a settled request."""
        self.by_outcome[model, outcome] += 1
        tokens = self.tokens[model]
        tokens[0] += amount.tokens_input
        tokens[1] += amount.tokens_output
        if amount.is_above:
            self.above_bound += 1


def prometheus_text(service: "Service") -> str:
    """Return the exposition format, version 0.0.4."""
    return "".join(f"{line}\n" for line in _lines(service))


def _lines(service: "Service") -> Iterator[str]:
    counts = service.counts
    yield "# HELP moulin_gateway_requests_total Settled inference requests."
    yield "# TYPE moulin_gateway_requests_total counter"
    for (model, outcome), count in sorted(counts.by_outcome.items()):
        yield (
            f'moulin_gateway_requests_total{{model="{_label(model)}",outcome="{outcome.decode()}"}} {count}'
        )
    yield "# HELP moulin_gateway_tokens_total Tokens charged."
    yield "# TYPE moulin_gateway_tokens_total counter"
    for model, (tokens_input, tokens_output) in sorted(counts.tokens.items()):
        label = _label(model)
        yield f'moulin_gateway_tokens_total{{model="{label}",direction="input"}} {tokens_input}'
        yield f'moulin_gateway_tokens_total{{model="{label}",direction="output"}} {tokens_output}'
    for name, kind, text, value in (
        ("retries_total", "counter", "Requests moved to another replica.", counts.retried),
        ("fallbacks_total", "counter", "Requests moved to another model.", counts.fell_back),
        ("refused_total", "counter", "Connections refused at the edge.", counts.refused),
        ("usage_above_bound_total", "counter", "Usage above its reservation.", counts.above_bound),
        ("connections", "gauge", "Open client connections.", len(service.connections)),
        ("requests_in_flight", "gauge", "Requests not settled yet.", len(service.exchanges)),
        ("requests_queued", "gauge", "Requests waiting for a replica.", service.queued),
        ("journal_sequence", "counter", "Journal lines written.", service.journal.sequence),
        ("snapshot_age_seconds", "gauge", "Since the leader confirmed it.", service.snapshot_age_s),
    ):
        yield f"# HELP moulin_gateway_{name} {text}"
        yield f"# TYPE moulin_gateway_{name} {kind}"
        yield f"moulin_gateway_{name} {value}"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
