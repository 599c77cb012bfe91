"""Passes: only who knows the pepper makes one, and only for the key it names."""

import pytest

from moulin.identity import make_pass, read_pass


def test_a_pass_names_its_key() -> None:
    assert read_pass(b"pepper", make_pass(b"pepper", "key_1")) == "key_1"


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "mp_",
        "mp_key_1",
        "mp_key_1_" + "0" * 64,
        "mp_key_2_" + make_pass(b"pepper", "key_1").rpartition("_")[2],
        make_pass(b"other", "key_1"),
        make_pass(b"pepper", "key_1")[3:],
        make_pass(b"pepper", "key_1")[:-1] + "é",
    ],
)
def test_what_is_no_pass_names_none(shown: str) -> None:
    assert read_pass(b"pepper", shown) is None
