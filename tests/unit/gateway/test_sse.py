"""Events pass whole and in order; only the usage event that was not asked for stays behind."""

import pytest

from moulin.gateway.sse import EventFilter, EventTooLong

FIRST = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
TRICK = b'data: {"choices":[{"delta":{"content":"{\\"usage\\": {\\"prompt_tokens\\": 0}}"}}]}\n\n'
NULL = b'data: {"choices":[{"delta":{"content":"b"}}],"usage":null}\n\n'
LAST = b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":9}}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n'
BROKEN = b'data: {"usage"\n\n'
LIST = b'data: ["usage"]\n\n'
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("events", "shows_usage", "passed", "usage"),
    [
        ((FIRST, DONE), False, (FIRST,), None),
        ((FIRST, USAGE, DONE), False, (FIRST,), 5),
        ((FIRST, USAGE, DONE), True, (FIRST, USAGE), 5),
        ((FIRST, LAST, DONE), False, (FIRST, LAST), 9),
        ((TRICK, DONE), False, (TRICK,), None),
        ((NULL, USAGE, DONE), False, (NULL,), 5),
        ((BROKEN, LIST, PING), False, (BROKEN, LIST, PING), None),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_what_passes(
    events: tuple[bytes, ...],
    shows_usage: bool,
    passed: tuple[bytes, ...],
    usage: int | None,
    size: int,
    line_end: bytes,
) -> None:
    data = b"".join(events).replace(b"\n", line_end)
    sieve = EventFilter(shows_usage=shows_usage)
    found = b"".join(sieve.pass_on(data[at : at + size]) for at in range(0, len(data), size))
    assert found.replace(b"\r\n", b"\n") == b"".join(passed)
    assert (sieve.usage or {}).get("prompt_tokens") == usage
    assert sieve.is_done == (DONE in events)
    assert sieve.events == sum(event.startswith(b"data:") for event in passed)


def test_an_event_that_never_ends_is_refused() -> None:
    sieve = EventFilter(shows_usage=False)
    assert sieve.pass_on(b"a" * 1_000_000) == b""
    with pytest.raises(EventTooLong):
        sieve.pass_on(b"a" * 100_000)
