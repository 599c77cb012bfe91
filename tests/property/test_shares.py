"""Shares of rates: whatever is lost, late, dead or restarted, no slice is used twice in a minute."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from moulin.domain.limits import ALL_SLICES, SLICES, GatewayShare, slices_of
from moulin.routing.shares import QUARANTINE_NS, Shares, known_after

SECOND = 1_000_000_000
STALE_NS = 60 * SECOND
SILENT_NS = STALE_NS + QUARANTINE_NS
LATE_NS = 20 * SECOND
NAMES = ("a", "b", "c")


@dataclass
class Process:
    """A gateway as it behaves: it keeps to the newest share, and to none when nobody answers."""

    share: GatewayShare | None = None
    limited_ns: int | None = None
    confirmed_ns: int = -(10**18)
    late: list[tuple[int, GatewayShare]] = field(default_factory=list)

    def drop_if_stale(self, now_ns: int) -> None:
        if now_ns - self.confirmed_ns > STALE_NS and self.share is not None:
            self.share = GatewayShare(slices=0, version=self.share.version)
        self.late = [each for each in self.late if now_ns - each[0] < LATE_NS]

    def ask(self, shares: Shares, name: str, now_ns: int, *, is_lost: bool) -> None:
        ago_s = -1 if self.limited_ns is None else (now_ns - self.limited_ns) // SECOND
        told = shares.tell(name, self.share, ago_s, now_ns)
        if not is_lost:
            self.late.append((now_ns, told))

    def hear(self, which: int) -> None:
        if not self.late:
            return
        asked_ns, told = self.late.pop(which % len(self.late))
        if self.share is None or told.version >= self.share.version:
            self.share = told
        self.confirmed_ns = max(self.confirmed_ns, asked_ns)


STEPS = st.lists(
    st.tuples(
        st.integers(1, 4000),
        st.sampled_from(NAMES),
        st.sampled_from(("ask", "ask", "lose", "hear", "hear", "use", "use", "sleep", "lead")),
        st.integers(0, 5),
    ),
    min_size=20,
    max_size=400,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_no_slice_is_used_by_two_within_a_minute(steps: list[tuple[int, str, str, int]]) -> None:
    shares, now_ns = known_after((), SILENT_NS, 0), 0
    processes = {name: Process() for name in NAMES}
    used: dict[int, dict[str, int]] = {index: {} for index in range(SLICES)}
    for passed_ms, name, action, number in steps:
        now_ns += passed_ms * 1_000_000 * (40 if action == "sleep" else 1)
        process = processes[name]
        for each in processes.values():
            each.drop_if_stale(now_ns)
        if action in ("ask", "lose"):
            process.ask(shares, name, now_ns, is_lost=action == "lose")
        elif action == "hear":
            process.hear(number)
        elif action == "lead":
            # Another leader: connections to the former one are gone, and what it knew.
            shares = known_after(NAMES, SILENT_NS, now_ns)
            for each in processes.values():
                each.late.clear()
        elif action == "use" and process.share is not None and process.share.slices:
            process.limited_ns = now_ns
            _use(used, process.share.slices, name, now_ns)


def _use(used: dict[int, dict[str, int]], slices: int, name: str, now_ns: int) -> None:
    for index in range(SLICES):
        if slices >> index & 1:
            for other, at_ns in used[index].items():
                assert other == name or now_ns - at_ns > STALE_NS
            used[index][name] = now_ns


@given(limit=st.integers(0, 10**6), first=st.integers(0, ALL_SLICES))
def test_disjoint_slices_are_never_more_than_the_limit(limit: int, first: int) -> None:
    assert slices_of(limit, first) + slices_of(limit, ALL_SLICES & ~first) == limit


def test_gateways_divide_evenly_and_the_last_one_gets_all_back() -> None:
    shares, now_ns = known_after((), SILENT_NS, 0), SECOND
    one = shares.tell("one", None, -1, now_ns)
    assert one.slices == ALL_SLICES
    two = shares.tell("two", None, -1, now_ns)
    assert two.slices == 0
    one = shares.tell("one", one, -1, now_ns)
    assert one.slices.bit_count() == SLICES // 2
    # Told is not left: only when the first says so is the rest the second's.
    assert shares.tell("two", two, -1, now_ns).slices == 0
    shares.tell("one", one, -1, now_ns)
    two = shares.tell("two", two, -1, now_ns)
    assert two.slices == ALL_SLICES & ~one.slices
    later_ns = now_ns + SILENT_NS + SECOND
    assert shares.tell("two", two, -1, later_ns).slices == ALL_SLICES


def test_what_was_used_a_moment_ago_is_nobodys_for_a_minute() -> None:
    shares, now_ns = known_after((), SILENT_NS, 0), SECOND
    one = shares.tell("one", None, -1, now_ns)
    shares.tell("two", None, -1, now_ns)
    one = shares.tell("one", one, 0, now_ns)
    shares.tell("one", one, 0, now_ns)
    assert shares.tell("two", None, -1, now_ns + 60 * SECOND).slices == 0
    assert shares.tell("two", None, -1, now_ns + QUARANTINE_NS).slices != 0
