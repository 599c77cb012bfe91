"""The typed client of the control API: `Moulin` for plain code, `AsyncMoulin` for asyncio.

Both are thin shells over one core of requests and decoders (`_core`, `_requests`); every answer is
a value of `moulin.domain`, every error the same class the server raised.
"""

from moulin.sdk.asynchronous import AsyncMoulin
from moulin.sdk.credentials import Credentials, find_credentials, read_credentials
from moulin.sdk.synchronous import Moulin

__all__ = ["AsyncMoulin", "Credentials", "Moulin", "find_credentials", "read_credentials"]
