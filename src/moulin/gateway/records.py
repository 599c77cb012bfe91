"""Journal lines as templates: a `JournalRecord` without its sequence, at the rate of requests.

The reader of these lines is `moulin.domain.wire`; a test holds the two together. What fills them
comes from the snapshot, already as JSON, or is made of fixed words and digits.
"""

from typing import Final

BEGIN: Final = (
    b'"kind":"begin","request":"req_%b","at_ns":"%d",%b,%b,"tokens_input":%d,"tokens_output":%d,'
    b'"amount_neur":"%d"}'
)
"""Request, time in ns, route, replica, then the reservation: tokens in, tokens out, n€."""

END: Final = (
    b'"kind":"end","request":"req_%b","at_ns":"%d",%b,%b,"tokens_input":%d,"tokens_output":%d,'
    b'"amount_neur":"%d","outcome":"%b","is_estimated":%b}'
)
"""Request, time in ns, route, replica, then what was used: tokens, n€, outcome, `true` or `false`."""
