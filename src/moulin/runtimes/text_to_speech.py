"""Turns text into speech over HTTP: a Piper voice, with espeak-ng for other languages.

    python -m moulin.runtimes.text_to_speech --model PATH --alias NAME --context N --parallel N
        --threads N --key-file FILE

The arguments and the contract are those of `program`. The model is a USTAR archive with NAME.onnx
and NAME.onnx.json. It reads the JSON of OpenAI's `/v1/audio/speech` and answers with the audio. The
voice of the model has the name of its data set, and answers to `default` and to the names of OpenAI's
voices, which clients send without being asked; `espeak-ng-LANGUAGE` are the formant voices.

Reference: piper-tts 1.8, OpenAI API reference (audio).
"""

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from moulin.domain.errors import InvalidRequest, LocalError, SourceError
from moulin.domain.model import Ability
from moulin.domain.runtime import Runtime
from moulin.runtimes.audio import FORMATS, check_format, encode
from moulin.runtimes.door import Answer, Door
from moulin.runtimes.espeak import PREFIX, Espeak
from moulin.runtimes.program import ServeSpec, run, silence_library, stay
from moulin.runtimes.speech_to_text import read_archive

RUNTIME: Final = Runtime(
    name="text_to_speech",
    title="text to speech: Piper voices, espeak-ng for other languages",
    abilities=(Ability.SPEAK,),
    modules=("piper", "espeakng_loader", "av"),
    lock="text_to_speech.txt",
    size_bytes=350 * 10**6,
)
PATH: Final = "/v1/audio/speech"
CHARACTERS_MAX: Final = 4096
SPEED_MIN, SPEED_MAX = 0.25, 4.0
STOCK_VOICES: Final = frozenset(
    {
        "default", "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova",
        "onyx", "sage", "shimmer", "verse",
    }
)  # fmt: skip


class Speaker:
    """The voice of the model and those of espeak-ng, one sentence at a time."""

    def __init__(self, spec: ServeSpec) -> None:
        """Load the voice.

        Raises `SourceError` for a damaged model file, `LocalError` when the runtime is not
        installed or refuses the model.
        """
        files = read_archive(spec.model_path)
        name = next((name for name in files if name.endswith(".onnx")), "")
        if f"{name}.json" not in files:
            raise SourceError(f"read the model file {spec.model_path}: it holds no Piper voice")
        try:
            self._voice = _load(files[name], json.loads(files[f"{name}.json"]), spec.threads)
        except (KeyError, ValueError) as cause:
            raise LocalError(f"load {spec.model_path}: {cause!r}") from cause
        self._espeak = Espeak()
        self._lock = threading.Lock()
        stem = name.removesuffix(".onnx")
        self.voices: Final = (*stem.split("-")[1:2], stem)

    def speak(self, text: str, voice: str, speed: float) -> tuple[bytes, int]:
        """Return 16-bit samples of one channel and their rate in Hz.

        Raises `InvalidRequest` for a voice that is not here.
        """
        with self._lock:
            if voice.startswith(PREFIX):
                return self._espeak.speak(text, voice, speed), self._espeak.rate_hz
            if voice not in self.voices and voice not in STOCK_VOICES:
                raise InvalidRequest(
                    f"'voice' must be {self.voices[0]} or {PREFIX}LANGUAGE (such as {PREFIX}fr)",
                    details={"param": "voice"},
                )
            return self._synthesised(text, speed), self._voice.config.sample_rate

    def _synthesised(self, text: str, speed: float) -> bytes:
        from piper import SynthesisConfig

        config = SynthesisConfig(length_scale=self._voice.config.length_scale / speed)
        return b"".join(c.audio_int16_bytes for c in self._voice.synthesize(text, config))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    return run(serve, RUNTIME.name, arguments)


def serve(spec: ServeSpec) -> NoReturn:
    """Load, prove with one word, announce, and wait for SIGTERM or SIGINT.

    Raises `SourceError` and `LocalError` as `Speaker` does.
    """
    speaker = Speaker(spec)
    silence_library()
    if not speaker.speak("Ready.", speaker.voices[0], 1.0)[0]:
        raise LocalError("try the voice: it said nothing")
    door = Door(
        alias=spec.alias,
        key=spec.key,
        parallel=spec.parallel,
        works={PATH: lambda body, headers: answer(speaker, body, headers)},
    )
    stay(door.open())


def answer(speaker: Speaker, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Answer one request.

    Raises `InvalidRequest` for a field that cannot be served.
    """
    try:
        asked = json.loads(body)
    except ValueError:
        raise InvalidRequest("the body must be JSON") from None
    if not isinstance(asked, dict):
        raise InvalidRequest("the body must be a JSON object")
    text, speed = asked.get("input"), asked.get("speed", 1.0)
    if not isinstance(text, str) or not 0 < len(text) <= CHARACTERS_MAX:
        raise InvalidRequest(
            f"'input' must be text of 1 to {CHARACTERS_MAX} characters", details={"param": "input"}
        )
    if not isinstance(speed, int | float) or not SPEED_MIN <= speed <= SPEED_MAX:
        raise InvalidRequest(
            f"'speed' must be a number from {SPEED_MIN} to {SPEED_MAX}", details={"param": "speed"}
        )
    name = str(asked.get("response_format") or "mp3")
    check_format(name)
    samples, rate_hz = speaker.speak(text, str(asked.get("voice")), float(speed))
    return Answer(200, FORMATS[name].content_type, encode(samples, rate_hz, name))


def _load(model: bytes, config: dict[str, Any], threads: int) -> Any:
    try:
        import onnxruntime
        from piper import PiperConfig, PiperVoice
    except ImportError as cause:
        raise LocalError(
            "serve a voice: piper-tts is not installed",
            hint=f"moulin runtime install {RUNTIME.name}",
        ) from cause
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return PiperVoice(config=PiperConfig.from_dict(config), session=session)


if __name__ == "__main__":
    sys.exit(main())
