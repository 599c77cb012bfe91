"""Whatever a value holds, it comes back from the wire as it was, through real JSON."""

import json

import hypothesis.strategies as st
from hypothesis import given

from moulin.domain.snapshot import GatewaySnapshot, JournalRecord, SyncReply, SyncRequest
from moulin.domain.usage import Entry, Receipt
from moulin.domain.wire import decode, encode
from moulin.domain.workload import Submission

VALUES = st.one_of(
    *(
        st.from_type(kind)
        for kind in (
            GatewaySnapshot,
            JournalRecord,
            SyncRequest,
            SyncReply,
            Submission,
            Entry,
            Receipt,
        )
    )
)


@given(VALUES)
def test_values_survive_the_wire(value: object) -> None:
    assert decode(type(value), json.loads(json.dumps(encode(value)))) == value
