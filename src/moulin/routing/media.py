"""What a request for vectors, a transcript or speech asks for, the most it can use, and its answer.

It decides which fields are served and what is reserved: tokens for vectors, the length of audio for
a transcript or a translation, characters for speech. It never decodes audio and never looks at the words of a text.

Source: OpenAI API reference (embeddings, audio), Mistral API reference (embeddings, audio).
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from moulin.domain.errors import InvalidRequest
from moulin.domain.model import Ability
from moulin.domain.multipart import Form, read_form
from moulin.domain.snapshot import ModelView
from moulin.routing.parameters import USER_FIELDS, bad, user_of

INPUTS_MAX: Final = 2048
TOKENS_AROUND: Final = 4
"""Marks that an encoder puts around each text."""
AUDIO_MS_MAX: Final = 5 * 60 * 1000
BYTES_PER_S_MIN: Final = 500
"""No codec in use makes a second of speech smaller than 4 kbit."""
CHARACTERS_MAX: Final = 4096
SPEED_MIN, SPEED_MAX = 0.25, 4.0
CONTENT_TYPES: Final = {
    "mp3": b"audio/mpeg", "opus": b"audio/ogg", "aac": b"audio/aac", "flac": b"audio/flac",
    "wav": b"audio/wav", "pcm": b"audio/pcm",
}  # fmt: skip
DEFAULT_VOICE: Final = "default"
"""The model's own voice, whatever its name."""
EVENT_BYTES: Final = 24 * 1024
"""Audio in one event: a whole number of base64's groups, so that texts may be joined, too."""
TRANSCRIPT_FORMATS: Final = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES: Final = ("segment", "word")

_EMBED_FIELDS: Final = frozenset({"model", "input", "encoding_format"})
_SPEAK_FIELDS: Final = frozenset(
    {"model", "input", "voice", "voice_id", "response_format", "speed", "stream_format"}
)
_TRANSCRIBE_FIELDS: Final = frozenset(
    {
        "model", "language", "prompt", "response_format", "temperature",
        "timestamp_granularities[]",
    }
)  # fmt: skip
_TRANSLATE_FIELDS: Final = frozenset({"model", "prompt", "response_format", "temperature"})
_IGNORED: Final = frozenset(
    {*USER_FIELDS, "instructions", "stream", "stream[]", "chunking_strategy", "metadata"}
)
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "output_dtype": ("float",),
    "include[]": ("",),
    "diarize": ("false",),
}
"""Fields whose only value here is the one that changes nothing."""


class Media(NamedTuple):
    """What the gateway must know of a request.

    `units` is the most it can use of what its model counts. `granularities` and `format` are of the
    answer, `boundary` divides the form that goes upstream as it came; other bodies are made of
    `fields`. `user` is whom the client names as its user. Speech may be wanted as `events`, and what
    was said as a translation into English. Mistral's clients want an answer of their own form.
    """

    model: str
    units: int
    ignored: tuple[str, ...]
    fields: Mapping[str, Any]
    format: str = "json"
    granularities: tuple[str, ...] = ()
    boundary: str = ""
    user: str = ""
    wants_events: bool = False
    is_translation: bool = False
    is_mistral: bool = False


def read_embeddings(body: Any, body_bytes: int, *, drops: bool = False) -> Media:
    """Check a parsed body; its tokens are bounded by its bytes.

    Raises `InvalidRequest` for a field that is not served or a value out of range.
    """
    if not drops:
        _refuse_dimensions(body)
    fields, ignored = _served(body, _EMBED_FIELDS, drops=drops)
    texts = _texts(fields.get("input"))
    if fields.get("encoding_format", "float") not in {"float", "base64"}:
        raise _bad("encoding_format", "float or base64")
    units = body_bytes + TOKENS_AROUND * len(texts)
    return Media(_model(fields), units, ignored, {**fields, "input": texts}, user=user_of(body))


def read_speech(body: Any, *, drops: bool = False, is_mistral: bool = False) -> Media:
    """Check a parsed body; what it uses is known before it is served.

    Mistral's clients call the voice `voice_id` and may leave it out.

    Raises `InvalidRequest` as `read_embeddings` does.
    """
    fields, ignored = _served(body, _SPEAK_FIELDS, drops=drops)
    text, named = fields.get("input"), fields.pop("voice_id", DEFAULT_VOICE if is_mistral else None)
    voice = fields.setdefault("voice", named)
    if type(text) is not str or not 0 < len(text) <= CHARACTERS_MAX:
        raise _bad("input", f"text of 1 to {CHARACTERS_MAX} characters")
    if type(voice) is not str or not voice:
        raise _bad("voice", "the name of a voice")
    speed = fields.get("speed", 1.0)
    if type(speed) not in {int, float} or not SPEED_MIN <= speed <= SPEED_MAX:
        raise _bad("speed", f"a number from {SPEED_MIN} to {SPEED_MAX}")
    answer_format = fields.setdefault("response_format", "mp3")
    if answer_format not in CONTENT_TYPES:
        raise _bad("response_format", f"one of {', '.join(CONTENT_TYPES)}")
    stream_format = fields.pop("stream_format", "audio")
    if stream_format not in {"audio", "sse"}:
        raise _bad("stream_format", "audio or sse")
    return Media(
        _model(fields),
        len(text),
        ignored,
        fields,
        answer_format,
        user=user_of(body),
        wants_events=stream_format == "sse",
        is_mistral=is_mistral,
    )


def read_transcription(body: bytes, *, drops: bool = False, is_translation: bool = False) -> Media:
    """Check a form; the length of its audio is bounded by its bytes, and always by `AUDIO_MS_MAX`.

    Raises `InvalidRequest` for a form that is malformed or has no file, and as `read_embeddings`.
    """
    form = read_form(body)
    values = dict(form.fields)
    known = _TRANSLATE_FIELDS if is_translation else _TRANSCRIBE_FIELDS
    fields, ignored = _served(values, known, drops=drops)
    files = [part for part in form.files if part.name == "file"]
    if len(files) != 1 or len(form.files) != 1:
        raise _bad("file", "exactly one file of audio")
    answer_format = fields.get("response_format", "json")
    if answer_format not in TRANSCRIPT_FORMATS:
        raise _bad("response_format", f"one of {', '.join(TRANSCRIPT_FORMATS)}")
    return Media(
        _model(fields),
        audio_bound_ms(files[0].data),
        ignored,
        {},
        answer_format,
        _granularities(form, answer_format),
        form.boundary,
        user_of(values),
        is_translation=is_translation,
    )


def audio_bound_ms(data: memoryview) -> int:
    """Return the most milliseconds of audio a file can be worth; its server refuses more than that.

    A WAV file says its bytes per second; the client pays for a wrong one with a refusal.

    >>> audio_bound_ms(memoryview(bytes(5_000)))
    10001
    """
    bytes_per_s = BYTES_PER_S_MIN
    if bytes(data[:4]) == b"RIFF" and bytes(data[8:12]) == b"WAVE" and len(data) >= 44:
        bytes_per_s = max(bytes_per_s, int.from_bytes(data[28:32], "little"))
    return min(len(data) * 1000 // bytes_per_s + 1, AUDIO_MS_MAX)


def check_ability(model: ModelView, wanted: Ability) -> None:
    """Raise `InvalidRequest` for a model that does something else than the path is for."""
    if model.ability is not wanted:
        raise InvalidRequest(
            f"use {model.name} to {wanted}: it is a model to {model.ability}",
            hint="GET /v1/models lists what each model does",
            details={"param": "model"},
        )


def transcript(said: Mapping[str, Any], media: Media) -> tuple[bytes | dict[str, Any], bytes]:
    """Return the answer a client asked for (text, or an object for JSON) and its content type."""
    if media.format == "text":
        return f"{said['text']}\n".encode(), b"text/plain; charset=utf-8"
    if media.format == "srt":
        return "\n".join(_srt(said["segments"])).encode(), b"text/plain; charset=utf-8"
    if media.format == "vtt":
        return "\n".join(_vtt(said["segments"])).encode(), b"text/vtt; charset=utf-8"
    usage = {"type": "duration", "seconds": said["usage"]["seconds"]}
    if media.format == "json":
        more = {"model": media.model, "language": said["language"]} if media.is_mistral else {}
        return {"text": said["text"], **more, "usage": usage}, b"application/json"
    shown = {name: said[name] for name in ("task", "language", "duration", "text")}
    if media.is_translation:
        shown["language"] = "english"  # OpenAI's word, of what is said now
    for name, granularity in (("words", "word"), ("segments", "segment")):
        if granularity in media.granularities:
            shown[name] = said.get(name, [])
    return {**shown, "usage": usage}, b"application/json"


def speech_object(audio: bytes) -> bytes:
    """Return audio as Mistral's clients want it: base64 in an object."""
    return b'{"audio_data":"%b"}' % base64.b64encode(audio)


def speech_events(audio: bytes, media: Media) -> bytes:
    """Return audio as the events of OpenAI's `stream_format: sse`.

    No tokens are counted for speech; the last event says the characters that are charged.
    """
    pieces = (audio[at : at + EVENT_BYTES] for at in range(0, len(audio), EVENT_BYTES))
    events = [
        {"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}
        for piece in pieces
    ]
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    done = {"type": "speech.audio.done", "usage": {**usage, "input_characters": media.units}}
    return "".join(f"data: {json.dumps(each)}\n\n" for each in (*events, done)).encode()


def _refuse_dimensions(body: Any) -> None:
    """Raise what OpenAI's service says of a model whose vectors cannot be shortened: all here."""
    wanted = body.get("dimensions") if type(body) is dict else None
    if wanted is None:
        return
    if type(wanted) is not int:
        raise bad("dimensions", "an integer", "invalid_type")
    if wanted < 1:
        raise bad("dimensions", "an integer of 1 or more", "integer_below_min_value")
    raise InvalidRequest(
        "This model does not support specifying dimensions.",
        details={"param": None, "code": None},
    )


def _served(
    body: Any, served: frozenset[str], *, drops: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    if type(body) is not dict:
        raise InvalidRequest("the body must be a JSON object")
    fields: dict[str, Any] = {}
    ignored = []
    for name, value in body.items():
        if name in served:
            if value is not None:
                fields[name] = value
        elif name in _IGNORED or drops:
            ignored.append(name)
        elif value is not None and value not in _NEUTRAL.get(name, ()):
            raise InvalidRequest(
                f"{name!r} is not served here"
                if name.isidentifier()
                else "a field is not served here",
                hint="leave it out, or check its spelling",
                details={"param": name[:64]},
            )
    return fields, tuple(sorted(name for name in ignored if name.isidentifier()))


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if type(model) is not str or not model:
        raise _bad("model", "the name of a model; GET /v1/models lists them")
    return model


def _texts(given: Any) -> Sequence[object]:
    texts = [given] if _is_text(given) else given
    if type(texts) is not list or not texts:
        raise _bad("input", "text, token numbers, or a list of such")
    if len(texts) > INPUTS_MAX:
        raise _bad("input", f"at most {INPUTS_MAX} texts")
    if not all(_is_text(text) for text in texts):
        raise _bad("input", "text that is not empty, token numbers, or a list of such")
    return texts


def _is_text(value: Any) -> bool:
    if type(value) is str:
        return bool(value)
    return type(value) is list and bool(value) and all(type(token) is int for token in value)


def _granularities(form: Form, answer_format: str) -> tuple[str, ...]:
    name = "timestamp_granularities[]"
    asked = form.values(name)
    if not set(asked) <= set(GRANULARITIES):
        raise _bad(name, "segment or word")
    if asked and answer_format != "verbose_json":
        raise _bad(name, "left out, unless response_format is verbose_json")
    return tuple(sorted(set(asked))) or ("segment",)


def _srt(segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for number, segment in enumerate(segments, start=1):
        yield f"{number}\n{_clock(segment['start'], ',')} --> {_clock(segment['end'], ',')}"
        yield f"{segment['text'].strip()}\n"


def _vtt(segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "WEBVTT\n"
    for segment in segments:
        yield f"{_clock(segment['start'], '.')} --> {_clock(segment['end'], '.')}"
        yield f"{segment['text'].strip()}\n"


def _clock(seconds: float, mark: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def _bad(field: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{field!r} must be {expected}", details={"param": field})
