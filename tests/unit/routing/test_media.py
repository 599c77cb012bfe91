"""What requests for vectors, transcripts and speech may ask, what is held for them, how answers look."""

import base64
import json
from dataclasses import replace

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.domain.model import Ability
from moulin.domain.snapshot import ModelView
from moulin.routing.media import (
    AUDIO_MS_MAX,
    DEFAULT_VOICE,
    Media,
    audio_bound_ms,
    check_ability,
    read_embeddings,
    read_speech,
    read_transcription,
    speech_events,
    speech_object,
    transcript,
)

SPEECH = {"model": "m", "input": "Bonjour", "voice": "v"}
SAID = {
    "task": "transcribe",
    "language": "en",
    "duration": 3661.5,
    "text": "A b.",
    "segments": [
        {"start": 0.0, "end": 1.25, "text": " A"},
        {"start": 3600.0, "end": 3661.5, "text": " b."},
    ],
    "words": [{"word": "A", "start": 0.0, "end": 1.0}],
    "usage": {"type": "duration", "seconds": 3662, "audio_ms": 3_661_500},
}


def form(*fields: tuple[str, str], files: int = 1) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields]
    file = (
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + "x" * 1000
        + "\r\n"
    )
    return ("".join(parts) + file * files + "--b--\r\n").encode()


@pytest.mark.parametrize(
    ("given", "texts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_texts_and_tokens_are_read_and_bounded_by_their_bytes(given, texts) -> None:
    media = read_embeddings({"model": "m", "input": given, "user": "u"}, 100)
    assert media.fields == {"model": "m", "input": texts}
    assert media.units == 100 + 4 * len(texts)
    assert media.ignored == ("user",)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({"input": "a"}, "model"),
        ({"model": "m"}, "input"),
        ({"model": "m", "input": ""}, "input"),
        ({"model": "m", "input": []}, "input"),
        ({"model": "m", "input": [""]}, "input"),
        ({"model": "m", "input": [["a"]]}, "input"),
        ({"model": "m", "input": ["a"] * 2049}, "input"),
        ({"model": "m", "input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"model": "m", "input": "a", "dimensions": 3}, None),
        ({"model": "m", "input": "a", "dimensions": "3"}, "dimensions"),
        ({"model": "m", "input": "a", "dimensions": 0}, "dimensions"),
        ({"model": "m", "input": "a", "user": 3}, "user"),
        ({"model": "m", "input": "a", "output_dtype": "int8"}, "output_dtype"),
    ],
)
def test_vectors_that_cannot_be_had_are_refused(body, param) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_embeddings(body, 10)
    assert caught.value.details.get("param") == param


def test_fields_may_be_dropped() -> None:
    body = {"model": "m", "input": "a", "dimensions": 3, "output_dtype": "float"}
    assert read_embeddings(body, 10, drops=True).ignored == ("dimensions", "output_dtype")


def test_speech_is_held_by_its_characters() -> None:
    media = read_speech({**SPEECH, "input": "é€😀", "instructions": "slowly"})
    assert (media.units, media.format, media.ignored) == (3, "mp3", ("instructions",))


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"voice": None}, "voice"),
        ({"speed": 5}, "speed"),
        ({"speed": True}, "speed"),
        ({"response_format": "midi"}, "response_format"),
        ({"stream_format": "ndjson"}, "stream_format"),
    ],
)
def test_speech_that_cannot_be_had_is_refused(changed, param) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_speech({**SPEECH, **changed})
    assert caught.value.details["param"] == param


def test_mistrals_words_for_speech_and_its_answers() -> None:
    words = {"model": "m", "input": "Bonjour"}
    assert read_speech(words, is_mistral=True).fields["voice"] == DEFAULT_VOICE
    assert read_speech({**words, "voice_id": "v", "stream": False}).fields["voice"] == "v"
    assert json.loads(speech_object(b"RIFF")) == {"audio_data": "UklGRg=="}
    media = read_transcription(form(("model", "m"), ("diarize", "false")))
    answer, _ = transcript(SAID, media._replace(is_mistral=True))
    assert isinstance(answer, dict)
    assert (answer["model"], answer["language"], answer["text"]) == ("m", "en", "A b.")
    with pytest.raises(InvalidRequest, match="diarize"):
        read_transcription(form(("model", "m"), ("diarize", "true")))


def test_speech_as_events_is_the_same_audio() -> None:
    media = read_speech({**SPEECH, "stream_format": "sse"})
    assert "stream_format" not in media.fields
    assert not read_speech({**SPEECH, "stream_format": "audio"}).wants_events
    audio = bytes(range(256)) * 300
    *deltas, done, end = speech_events(audio, media).decode().split("\n\n")
    parts = [json.loads(each.removeprefix("data: ")) for each in deltas]
    assert {part["type"] for part in parts} == {"speech.audio.delta"}
    assert base64.b64decode("".join(part["audio"] for part in parts)) == audio
    last = json.loads(done.removeprefix("data: "))
    assert (last["type"], last["usage"]["input_characters"]) == ("speech.audio.done", 7)
    assert end == ""


def test_a_form_is_read() -> None:
    media = read_transcription(form(("model", "m"), ("stream", "false")))
    assert (media.model, media.format, media.boundary, media.units) == ("m", "json", "b", 2001)
    assert media.ignored == ("stream",)


def test_a_translation_is_read_and_shown_in_english() -> None:
    media = read_transcription(
        form(("model", "m"), ("response_format", "verbose_json")), is_translation=True
    )
    assert media.is_translation
    answer, _ = transcript({**SAID, "task": "translate", "language": "fr"}, media)
    assert isinstance(answer, dict)
    assert (answer["task"], answer["language"]) == ("translate", "english")
    with pytest.raises(InvalidRequest) as caught:
        read_transcription(form(("model", "m"), ("language", "fr")), is_translation=True)
    assert caught.value.details["param"] == "language"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form(), "model"),
        (form(("model", "m"), files=0), "file"),
        (form(("model", "m"), files=2), "file"),
        (form(("model", "m"), ("response_format", "xml")), "response_format"),
        (form(("model", "m"), ("timestamp_granularities[]", "word")), "timestamp_granularities[]"),
        (form(("model", "m"), ("surprise", "1")), "surprise"),
    ],
)
def test_forms_that_cannot_be_served_are_refused(body, param) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_transcription(body)
    assert caught.value.details["param"] == param


def test_audio_is_bounded_by_its_bytes_and_by_what_a_wav_says() -> None:
    wav = b"RIFF....WAVEfmt ............" + (32_000).to_bytes(4, "little") + bytes(32_012)
    assert audio_bound_ms(memoryview(wav)) == 32_044 * 1000 // 32_000 + 1
    assert audio_bound_ms(memoryview(bytes(10**7))) == AUDIO_MS_MAX
    assert audio_bound_ms(memoryview(b"")) == 1


def test_a_model_does_one_thing() -> None:
    view = ModelView(
        name="m", endpoint="e", project="p", is_public=True, context_tokens=8,
        tokens_output_default=1, price_input_neur=0, price_output_neur=0, price_per=1,
    )  # fmt: skip
    check_ability(view, Ability.GENERATE)
    with pytest.raises(InvalidRequest, match="a model to embed"):
        check_ability(replace(view, ability=Ability.EMBED), Ability.SPEAK)


def shown(answer_format: str, *granularities: str) -> object:
    media = Media("m", 1, (), {}, answer_format, granularities)
    return transcript(SAID, media)[0]


def test_a_transcript_in_each_form() -> None:
    usage = {"type": "duration", "seconds": 3662}
    assert shown("json") == {"text": "A b.", "usage": usage}
    assert shown("text") == b"A b.\n"
    assert shown("srt") == (
        b"1\n00:00:00,000 --> 00:00:01,250\nA\n\n2\n01:00:00,000 --> 01:01:01,500\nb.\n"
    )
    assert shown("vtt") == (
        b"WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nA\n\n01:00:00.000 --> 01:01:01.500\nb.\n"
    )
    full = {
        "task": "transcribe",
        "language": "en",
        "duration": 3661.5,
        "text": "A b.",
        "usage": usage,
    }
    assert shown("verbose_json", "segment") == {**full, "segments": SAID["segments"]}
    assert shown("verbose_json", "word") == {**full, "words": SAID["words"]}
