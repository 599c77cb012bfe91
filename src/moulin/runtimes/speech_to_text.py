"""Turns speech into text over HTTP: Whisper by faster-whisper, in this process.

    python -m moulin.runtimes.speech_to_text --model PATH --alias NAME --context N --parallel N
        --threads N --key-file FILE

The arguments and the contract are those of `program`. The model is a USTAR archive with the files
of a CTranslate2 Whisper. It reads the form of OpenAI's `/v1/audio/transcriptions`, and of
`/v1/audio/translations` where the model knows more than English, and always answers all it knows (text, segments, words where asked for) with `usage.audio_ms`; which part of that a
client sees is the gateway's work. Audio is decoded in memory, never longer than the caller's header
`x-moulin-audio-ms-max` allows, by demuxers of plain containers only: a playlist could name files.

Reference: faster-whisper 1.2, OpenAI API reference (audio).
"""

import io
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from moulin.domain.errors import InvalidRequest, LocalError, SourceError
from moulin.domain.model import Ability
from moulin.domain.multipart import Form, read_form
from moulin.domain.runtime import Runtime
from moulin.runtimes.door import Answer, Door, as_json
from moulin.runtimes.program import ServeSpec, run, silence_library, stay

RUNTIME: Final = Runtime(
    name="speech_to_text",
    title="speech to text: Whisper by faster-whisper",
    abilities=(Ability.TRANSCRIBE,),
    modules=("faster_whisper", "av"),
    lock="speech_to_text.txt",
    size_bytes=480 * 10**6,
)
PATH: Final = "/v1/audio/transcriptions"
TRANSLATIONS: Final = "/v1/audio/translations"
LIMIT_HEADER: Final = "x-moulin-audio-ms-max"
AUDIO_MS_MAX: Final = 5 * 60 * 1000
RATE_HZ: Final = 16_000
CONTAINERS: Final = "wav,mp3,flac,ogg,mov,matroska,aac"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    return run(serve, RUNTIME.name, arguments)


def serve(spec: ServeSpec) -> NoReturn:
    """Load, prove with half a second of silence, announce, and wait for SIGTERM or SIGINT.

    Raises `SourceError` for a damaged model file, `LocalError` when the runtime is not installed
    or refuses the model.
    """
    model = load(spec)
    silence_library()
    transcribe(model, bytes(RATE_HZ), {})
    door = Door(
        alias=spec.alias,
        key=spec.key,
        parallel=spec.parallel,
        works={
            PATH: lambda body, headers: answer(model, body, headers),
            TRANSLATIONS: lambda body, headers: answer(model, body, headers, "translate"),
        },
    )
    stay(door.open())


def load(spec: ServeSpec) -> Any:
    """Return the model, its files read from the archive into memory.

    Raises `SourceError` and `LocalError` as `serve` does.
    """
    try:
        from faster_whisper import WhisperModel
    except ImportError as cause:
        raise LocalError(
            "serve a model: faster-whisper is not installed",
            hint=f"moulin runtime install {RUNTIME.name}",
        ) from cause
    try:
        return WhisperModel(
            spec.alias,
            device="cpu",
            compute_type="int8",
            cpu_threads=spec.threads,
            num_workers=spec.parallel,
            local_files_only=True,
            files=read_archive(spec.model_path),
        )
    except (RuntimeError, ValueError) as cause:
        raise LocalError(f"load {spec.model_path}: {cause}") from cause


def read_archive(path: Path) -> dict[str, bytes]:
    """Return the files of a USTAR archive by name.

    Raises `SourceError` when it is none.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            return {
                member.name: content.read()
                for member in archive
                if (content := archive.extractfile(member)) is not None
            }
    except (OSError, tarfile.TarError) as cause:
        raise SourceError(f"read the model file {path}: {cause}") from cause


def answer(model: Any, body: bytes, headers: Mapping[str, str], task: str = "transcribe") -> Answer:
    """Answer one request; the other task is to `translate` into English.

    Raises `InvalidRequest` for a form, a field or audio that cannot be served.
    """
    if task == "translate" and not model.model.is_multilingual:
        raise InvalidRequest(
            "this model knows no language but English: it cannot translate",
            details={"param": "model"},
        )
    form = read_form(body)
    file = next((part for part in form.files if part.name == "file"), None)
    if file is None:
        raise InvalidRequest("the form has no file", details={"param": "file"})
    limit = headers.get(LIMIT_HEADER, "")
    audio = decode(file.data, min(int(limit), AUDIO_MS_MAX) if limit.isdigit() else AUDIO_MS_MAX)
    return as_json(transcribe(model, audio, {**options_of(form), "task": task}))


def options_of(form: Form) -> dict[str, Any]:
    """Return what faster-whisper is told beyond the audio.

    Raises `InvalidRequest` for a temperature that is no number between 0 and 1.
    """
    fields = dict(form.fields)
    options: dict[str, Any] = {
        "word_timestamps": "word" in form.values("timestamp_granularities[]")
    }
    if fields.get("language"):
        options["language"] = fields["language"]
    if fields.get("prompt"):
        options["initial_prompt"] = fields["prompt"]
    if fields.get("temperature"):
        try:
            options["temperature"] = float(fields["temperature"])
        except ValueError:
            raise InvalidRequest(
                "'temperature' must be a number", details={"param": "temperature"}
            ) from None
    return options


def decode(data: memoryview, limit_ms: int) -> bytes:
    """Return audio as 16-bit samples, one channel, 16 kHz.

    Raises `InvalidRequest` for what is no audio in a plain container, or longer than `limit_ms`.
    """
    import av

    pieces: list[bytes] = []
    samples = 0
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    try:
        with av.open(
            io.BytesIO(data), metadata_errors="ignore", options={"format_whitelist": CONTAINERS}
        ) as container:
            for frame in container.decode(audio=0):
                frame.pts = None
                for piece in resampler.resample(frame):
                    pieces.append(bytes(piece.planes[0])[: 2 * piece.samples])
                    samples += piece.samples
                if milliseconds(samples) > limit_ms:
                    raise _too_long(limit_ms)
            pieces.extend(bytes(p.planes[0])[: 2 * p.samples] for p in resampler.resample(None))
    except (av.FFmpegError, IndexError, ValueError, OSError):
        raise InvalidRequest(
            "the file is no audio that can be read here (wav, mp3, flac, ogg, m4a, webm)",
            details={"param": "file"},
        ) from None
    return b"".join(pieces)


def milliseconds(samples: int) -> int:
    """Return the length of so many samples, rounded up: audio of any length counts."""
    return -(-samples * 1000 // RATE_HZ)


def transcribe(model: Any, audio: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return text, segments and what was used, as OpenAI's verbose form with `usage.audio_ms`.

    Raises `InvalidRequest` for a language the model does not know.
    """
    import numpy as np

    samples = np.frombuffer(audio, dtype=np.int16).astype(np.float32) / 32768.0
    language = options.get("language")
    if language is not None and language not in model.supported_languages:
        raise InvalidRequest("'language' is none of this model's", details={"param": "language"})
    found, info = model.transcribe(samples, **options)
    segments = list(found)
    audio_ms = milliseconds(len(samples))
    said: dict[str, Any] = {
        "task": options.get("task", "transcribe"),
        "language": info.language,
        "duration": audio_ms / 1000,
        "text": "".join(segment.text for segment in segments).strip(),
        "segments": [_segment(segment) for segment in segments],
        "usage": {"type": "duration", "seconds": -(-audio_ms // 1000), "audio_ms": audio_ms},
    }
    if options.get("word_timestamps"):
        said["words"] = [
            {"word": word.word.strip(), "start": float(word.start), "end": float(word.end)}
            for segment in segments
            for word in segment.words or ()
        ]
    return said


def _segment(segment: Any) -> dict[str, Any]:
    return {
        "id": segment.id - 1,
        "seek": segment.seek,
        "start": float(segment.start),
        "end": float(segment.end),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": float(segment.temperature or 0.0),
        "avg_logprob": float(segment.avg_logprob),
        "compression_ratio": float(segment.compression_ratio),
        "no_speech_prob": float(segment.no_speech_prob),
    }


def _too_long(limit_ms: int) -> InvalidRequest:
    return InvalidRequest(
        f"the audio is longer than {limit_ms // 1000} s, the most that was reserved for its bytes",
        details={"param": "file"},
    )


if __name__ == "__main__":
    sys.exit(main())
