"""The demo's documents: ours are short, a user's own are cut to the stated length and never half-read."""

import pytest

from moulin.app.demo import documents
from moulin.domain.errors import InvalidRequest


def test_ours_are_whole_and_in_three_languages():
    selection = documents.select(None)
    assert [each.name for each in selection.documents] == ["1-fr.txt", "2-de.txt", "3-zh.txt"]
    assert selection.found == 3
    assert not any(each.is_cut for each in selection.documents)
    assert all(0 < each.tokens_estimated <= documents.TOKENS_MAX for each in selection.documents)


@pytest.mark.parametrize(
    ("text", "tokens_max", "kept", "tokens"),
    [
        ("", 10, "", 0),
        ("abc", 1, "abc", 1),
        ("abcd", 1, "abc", 1),
        ("éé", 2, "éé", 2),
        ("磨坊磨坊", 2, "磨坊", 2),
        ("one two. three fou", 4, "one two.", 4),
        ("line one\nline tw", 4, "line one", 4),
    ],
)
def test_a_text_is_cut_at_its_estimate(text, tokens_max, kept, tokens):
    assert documents.cut(text, tokens_max) == (kept, tokens)


def test_a_users_folder_is_read_in_order_and_only_so_much(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.md").write_text(f"text {number}. " * 500, "utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    selection = documents.select(tmp_path)
    assert selection.found == 7
    assert [each.name for each in selection.documents] == [f"{n}.md" for n in range(5)]
    assert all(each.is_cut and each.text.endswith(".") for each in selection.documents)
    documents.write(selection, tmp_path / "out")
    assert (tmp_path / "out" / "0.md").read_text("utf-8") == selection.documents[0].text


def test_what_cannot_be_read_is_refused_with_its_place(tmp_path):
    with pytest.raises(InvalidRequest, match="it is no folder"):
        documents.select(tmp_path / "absent")
    with pytest.raises(InvalidRequest, match=r"no \.txt or \.md file"):
        documents.select(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidRequest, match="byte 3 is not UTF-8"):
        documents.select(tmp_path)
