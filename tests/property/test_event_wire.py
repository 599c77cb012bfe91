"""Whatever an event of any kind holds, it comes back from real JSON as it was."""

import json

import hypothesis.strategies as st
from hypothesis import given

from moulin.domain.event_wire import decode_event, encode_event
from moulin.domain.events import TYPE_BY_KIND, Event, FactoryApplied, ObjectChange
from moulin.domain.factory import TYPE_BY_KIND as TYPE_BY_OBJECT_KIND

CHANGES = st.one_of(
    *(
        st.builds(
            ObjectChange,
            kind=st.just(kind),
            name=st.text(max_size=5),
            value=st.none() | st.from_type(value_type),
        )
        for kind, value_type in TYPE_BY_OBJECT_KIND.items()
    )
)
APPLIED = st.builds(FactoryApplied, changes=st.lists(CHANGES, max_size=3).map(tuple))
OTHERS: list[st.SearchStrategy] = [
    st.from_type(each) for each in TYPE_BY_KIND.values() if each is not FactoryApplied
]
EVENTS = st.builds(
    Event,
    sequence=st.integers(1, 2**62),
    schema=st.just(1),
    payload=st.one_of(APPLIED, *OTHERS),
)


@given(EVENTS)
def test_events_survive_the_wire(event: Event) -> None:
    assert decode_event(json.loads(json.dumps(encode_event(event)))) == event
