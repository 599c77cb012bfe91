"""Journal lines as bytes: a `JournalRecord` without its sequence, formatted at the rate of requests.

The reader of these lines is `moulin.domain.wire`; a test holds the two together. Text in them comes
from the snapshot, already as JSON, or is made of fixed words and digits.
"""


def begin_line(
    *,
    request: bytes,
    at_ns: int,
    route: bytes,
    replica: bytes,
    tokens_input: int,
    tokens_output: int,
    amount_neur: int,
) -> bytes:
    """Return the BEGIN of a request; the amounts are its reservation."""
    return (
        b'"kind":"begin","request":"req_%b","at_ns":"%d",%b,%b,"tokens_input":%d,'
        b'"tokens_output":%d,"amount_neur":"%d"}'
        % (request, at_ns, route, replica, tokens_input, tokens_output, amount_neur)
    )


def end_line(
    *,
    request: bytes,
    at_ns: int,
    route: bytes,
    replica: bytes,
    tokens_input: int,
    tokens_output: int,
    amount_neur: int,
    outcome: bytes,
    is_estimated: bool,
) -> bytes:
    """Return the END of a request; the amounts are what it used."""
    return (
        b'"kind":"end","request":"req_%b","at_ns":"%d",%b,%b,"tokens_input":%d,"tokens_output":%d,'
        b'"amount_neur":"%d","outcome":"%b","is_estimated":%b}'
        % (
            request,
            at_ns,
            route,
            replica,
            tokens_input,
            tokens_output,
            amount_neur,
            outcome,
            b"true" if is_estimated else b"false",
        )
    )
