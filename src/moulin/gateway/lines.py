"""Lines of batches: requests like any other, at the batch price, and only where nobody waits.

It decides that a line takes a slot no person would have had: never the last free one of a replica,
never before who queues. It is refused at once otherwise and comes back; its name in the journal
lets it be charged once.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from moulin.domain.errors import InvalidRequest, NotFound, Unavailable
from moulin.gateway.directory import PassCaller

if TYPE_CHECKING:
    from moulin.gateway.edge import ClientConnection, Inbound
    from moulin.gateway.exchange import Exchange
    from moulin.gateway.service import Service

LINES: Final = b"/v1/batch-lines/"


def open_line(
    service: "Service", client: "ClientConnection", inbound: "Inbound", identifier: bytes
) -> "Exchange":
    """Return the exchange of a line, `LINES` + its name + the path it is for.

    Raises what the path's own requests raise, `NotFound` for a caller without a pass,
    `InvalidRequest` for a stream and `Unavailable` when only slots for people are free.
    """
    if not isinstance(inbound.caller, PassCaller):
        raise NotFound("serve this path", hint="see /v1/batches")
    line, _, path = inbound.path[len(LINES) :].partition(b"/")
    exchange = service.open_exchange(client, replace(inbound, path=b"/" + path), identifier)
    if exchange.asks_stream:
        raise InvalidRequest("answer a line of a batch as a stream", details={"param": "stream"})
    exchange.bill_line(line)
    if not exchange.finds_spare_room():
        raise Unavailable(
            "carry out this line now: no slot is spare",
            hint="it is tried again",
            details={"retry_after_s": 1},
        )
    return exchange
