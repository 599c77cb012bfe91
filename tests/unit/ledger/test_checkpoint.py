"""Signed tree heads: the published example note, and every way in which a note can be wrong."""

import base64

import pytest

from moulin.ledger import (
    BrokenEvidence,
    TreeHead,
    VerifierKey,
    checkpoint_text,
    open_checkpoint,
    parse_verifier_key,
    signed_note,
)
from tests.unit.ledger.examples import KEY, ORIGIN, PRIVATE, is_signed, note_of

# The example key and note of Go's golang.org/x/mod/sumdb/note, which C2SP signed-note describes.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
GO_LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
HEAD = TreeHead(origin=ORIGIN, size=3, root=bytes(range(32)))


def test_the_published_key_and_note_read_alike():
    key = parse_verifier_key(GO_KEY)
    assert (key.name, key.id.hex(), key.text) == ("PeterNeumann", "c74f20a3", GO_KEY)
    signature = base64.b64decode(GO_LINE.split(" ")[2])[4:]
    assert is_signed(key.public_key, signature, GO_TEXT.encode())
    assert signed_note(GO_TEXT, key, signature) == f"{GO_TEXT}\n{GO_LINE}"


def test_a_checkpoint_is_origin_size_and_root():
    assert checkpoint_text(HEAD).split("\n") == [
        "moulin/demo/lyon/receipts/v1",
        "3",
        base64.b64encode(bytes(range(32))).decode(),
        "",
    ]


def test_a_signed_checkpoint_opens():
    assert open_checkpoint(note_of(HEAD), KEY, is_signed) == HEAD
    empty = TreeHead(origin=ORIGIN, size=0, root=bytes(32))
    assert open_checkpoint(note_of(empty), KEY, is_signed) == empty


def resigned(text):
    return signed_note(text, KEY, PRIVATE.sign(text.encode()))


TEXT = checkpoint_text(HEAD)
NOTE = note_of(HEAD)
OTHER = VerifierKey(name="moulin/other", public_key=KEY.public_key)


@pytest.mark.parametrize(
    ("note", "statement"),
    [
        ("", "not signed"),
        ("\n\n", "not signed"),
        (TEXT, "not signed|base 64"),
        (NOTE[:-1], "not signed"),
        (NOTE + "\n", "not signed|base 64"),
        (NOTE + NOTE.rpartition("\n\n")[2], "not signed|base 64"),
        (NOTE.replace("—", "-"), "not signed|base 64"),
        (NOTE.replace("moulin/demo ", "moulin/Demo "), "not signed|base 64"),
        (NOTE.replace("\n3\n", "\n4\n"), "signature is wrong"),
        (signed_note(TEXT, KEY, bytes(64)), "signature is wrong"),
        (signed_note(TEXT, KEY, b""), "signature is wrong"),
        (resigned("moulin/demo/x\n3\n"), "does not state"),
        (resigned(f"{TEXT}extension\n"), "does not state"),
        (resigned(TEXT.replace("\n3\n", "\n03\n")), "does not state"),
        (resigned(TEXT.replace("\n3\n", "\n-3\n")), "does not state"),
        (resigned(TEXT.replace("moulin/demo/", "moulin/demo2/")), "not of a log of"),
        (resigned(TEXT.replace("AAEC", "!!!!")), "base 64"),
    ],
)
def test_a_wrong_note_is_refused_with_what_is_wrong(note, statement):
    with pytest.raises(BrokenEvidence, match=statement):
        open_checkpoint(note, KEY, is_signed)


def test_a_signature_of_another_name_is_refused():
    with pytest.raises(BrokenEvidence, match=r"not signed by|base 64"):
        open_checkpoint(note_of(HEAD), OTHER, is_signed)


def test_a_public_key_survives_its_text_form():
    assert parse_verifier_key(f"{KEY.text}\n") == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        KEY.text[:-4],
        KEY.text.replace("moulin/demo", "moulin/memo"),
        KEY.text.replace("+AV", "+BV") if "+AV" in KEY.text else "x+00+AAAA",
        "moulin/démo" + KEY.text[len("moulin/demo") :],
        "a b+00000000+" + KEY.text.rsplit("+", 1)[1],
    ],
)
def test_a_wrong_public_key_is_refused(text):
    with pytest.raises(BrokenEvidence):
        parse_verifier_key(text)
