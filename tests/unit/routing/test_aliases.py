"""What an alias means for one request, and what its answers say."""

import pytest

from moulin.domain.snapshot import AliasTarget, AliasView
from moulin.routing.aliases import headers_of, is_over, successor_of, target_of

NS = 10**9


def alias(*targets: tuple[str, int], deprecated_s: int = 0, sunset_s: int = 0) -> AliasView:
    return AliasView(
        name="chat",
        targets=tuple(AliasTarget(model=model, weight=weight) for model, weight in targets),
        deprecated_at_ns=deprecated_s * NS,
        sunset_at_ns=sunset_s * NS,
    )


@pytest.mark.parametrize(
    ("targets", "usable", "possible"),
    [
        ((("old", 1), ("new", 1)), {"old", "new"}, {"old", "new"}),
        ((("old", 0), ("new", 1)), {"old", "new"}, {"new"}),
        ((("old", 1), ("new", 1)), {"old"}, {"old"}),
        ((("old", 0), ("new", 1)), {"old"}, {None}),
        ((("old", 1),), set(), {None}),
    ],
)
def test_targets(
    targets: tuple[tuple[str, int], ...], usable: set[str], possible: set[str | None]
) -> None:
    found = {target_of(alias(*targets), usable, b"%d" % number) for number in range(100)}
    assert found == possible


def test_the_end_of_a_name() -> None:
    named = alias(("old", 1), ("new", 9), sunset_s=100)
    assert not is_over(named, 100 * NS - 1)
    assert is_over(named, 100 * NS)
    assert not is_over(alias(("old", 1)), 10**30)
    assert successor_of(named) == "new"


@pytest.mark.parametrize(
    ("named", "lines"),
    [
        (None, b"x-moulin-model: new\r\n"),
        (alias(("new", 1)), b"x-moulin-model: new\r\n"),
        (
            alias(("new", 1), deprecated_s=1688169599, sunset_s=1719792000),
            (
                b"x-moulin-model: new\r\ndeprecation: @1688169599\r\n"
                b'link: </v1/models/new>; rel="successor-version"\r\n'
                b"sunset: Mon, 01 Jul 2024 00:00:00 GMT\r\n"
            ),
        ),
    ],
)
def test_what_answers_say(named: AliasView | None, lines: bytes) -> None:
    assert headers_of(named, "new") == lines
