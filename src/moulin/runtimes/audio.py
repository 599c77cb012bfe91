"""Puts 16-bit samples of one channel into the containers that OpenAI's speech API names.

It decides rates and bit rates; everything stays in memory. PCM is always 24 kHz, which is what
clients that get no header assume.
"""

import io
import wave
from typing import Any, Final, NamedTuple

from moulin.domain.errors import InvalidRequest


class Format(NamedTuple):
    """One format: content type, container and codec (empty: written here), rate in Hz (0: any)."""

    content_type: str
    container: str
    codec: str
    rate_hz: int


FORMATS: Final = {
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", 0),
    "opus": Format("audio/ogg", "ogg", "libopus", 48_000),
    "aac": Format("audio/aac", "adts", "aac", 0),
    "flac": Format("audio/flac", "flac", "flac", 0),
    "wav": Format("audio/wav", "", "", 0),
    "pcm": Format("audio/pcm", "", "", 24_000),
}
BIT_RATE: Final = 64_000


def check_format(name: str) -> None:
    """Raise `InvalidRequest` for a format that is not served."""
    if name not in FORMATS:
        raise InvalidRequest(
            f"'response_format' must be one of {', '.join(FORMATS)}",
            details={"param": "response_format"},
        )


def encode(samples: bytes, rate_hz: int, name: str) -> bytes:
    """Return the samples in one of `FORMATS`."""
    wanted = FORMATS[name]
    if wanted.codec:
        return _encoded(samples, rate_hz, wanted)
    rate = wanted.rate_hz or rate_hz
    plain = b"".join(bytes(f.planes[0])[: 2 * f.samples] for f in _frames(samples, rate_hz, rate))
    if name == "pcm":
        return plain
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(plain)
    return target.getvalue()


def _encoded(samples: bytes, rate_hz: int, wanted: Format) -> bytes:
    import av

    target = io.BytesIO()
    rate = wanted.rate_hz or rate_hz
    with av.open(target, "w", format=wanted.container) as container:
        stream: Any = container.add_stream(wanted.codec, rate=rate, layout="mono")
        stream.bit_rate = BIT_RATE
        for frame in _frames(samples, rate_hz, rate):
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return target.getvalue()


def _frames(samples: bytes, rate_hz: int, rate: int) -> list[Any]:
    import av
    import numpy as np

    frame = av.AudioFrame.from_ndarray(
        np.frombuffer(samples, dtype=np.int16).reshape(1, -1), format="s16", layout="mono"
    )
    frame.sample_rate = rate_hz
    if rate == rate_hz:
        return [frame]
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    return [*resampler.resample(frame), *resampler.resample(None)]
