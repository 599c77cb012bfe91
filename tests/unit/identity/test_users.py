"""What is recorded of a user's name: a keyed hash, or the name where the operator says so."""

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.identity.users import names_of_user, recorded_user

PEPPER = b"p" * 32


def test_a_name_is_another_user_in_another_project_and_under_another_pepper() -> None:
    recorded = {
        recorded_user(pepper, project, "ada", keeps_name=False)
        for pepper in (PEPPER, b"q" * 32)
        for project in ("lab", "lab2")
    }
    assert len(recorded) == 4
    assert all(len(each) == 36 and each.startswith("usr_") for each in recorded)
    assert recorded_user(PEPPER, "lab", "ada", keeps_name=False) in recorded


def test_no_two_pairs_of_project_and_name_are_one() -> None:
    pairs = [("a", "1\nb"), ("a\n1", "b"), ("a", "b"), ("ab", ""), ("a", "\ud800")]
    assert len({recorded_user(PEPPER, *pair, keeps_name=False) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("keeps_name", [True, False])
def test_no_name_is_one_user_and_a_long_one_none(keeps_name: bool) -> None:
    assert recorded_user(PEPPER, "lab", "", keeps_name=keeps_name) == "usr_none"
    with pytest.raises(InvalidRequest, match="256 characters"):
        recorded_user(PEPPER, "lab", "a" * 257, keeps_name=keeps_name)


def test_names_that_are_kept_can_be_shown() -> None:
    assert recorded_user(PEPPER, "lab", "Ada ♥", keeps_name=True) == "Ada ♥"
    with pytest.raises(InvalidRequest, match="printable"):
        recorded_user(PEPPER, "lab", "ada\x1b[31m", keeps_name=True)


def test_who_looks_finds_a_user_by_name_or_by_record() -> None:
    hashed = recorded_user(PEPPER, "lab", "ada", keeps_name=False)
    assert names_of_user(PEPPER, "lab", "ada") == (hashed, "ada")
    assert names_of_user(PEPPER, "lab", hashed) == (hashed,)
