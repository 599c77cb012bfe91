"""What a caller is never shown of an event: a key's digest, a secret's ciphertext."""

from moulin.api.events import frame, public_event
from moulin.domain.events import Event
from tests.golden.secrets_story import secrets


def test_a_stream_shows_who_set_which_secret_and_no_ciphertext():
    [payload, *_] = secrets()
    event = Event(sequence=1, epoch=1, at_ns=1, actor="key_member", payload=payload)
    shown = public_event(event)["payload"]["secret"]
    assert (shown["name"], shown["set_by"], shown["ciphertext"]) == ("hugging-face", "ada", "")
    assert b"c2VhbGVk" not in frame(event)  # "sealed", as base64 has it
