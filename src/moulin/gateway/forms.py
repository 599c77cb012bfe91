"""Answers that go to the client in another shape than a replica gives them.

It decides how a whole answer and a stream of events are rewritten for one request. It never fails a
request: what it does not understand goes on as it came. Requests without a form pay nothing for it.
"""

from typing import Protocol


class Form(Protocol):
    """The shape one request's answer goes out in; it lives as long as the request."""

    def whole(self, body: bytes) -> bytes:
        """Return the client's form of a complete answer, JSON both."""
        ...

    def piece(self, data: bytes) -> bytes:
        """Return the client's form of some whole events, which may be none or more of them."""
        ...

    def end(self) -> bytes:
        """Return the events held back, when the stream ended well; `[DONE]` follows."""
        ...
