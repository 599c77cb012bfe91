"""The voices of espeak-ng, in many languages: intelligible, not natural, and always named so.

A voice is called `espeak-ng-LANGUAGE`, so that nobody takes it for a neural one. Not safe for
threads: whoever calls holds a lock.
"""

import ctypes
import re
from typing import Any, Final

from moulin.domain.errors import InvalidRequest, LocalError

PREFIX: Final = "espeak-ng-"
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]{1,12}){0,3}")
_RETRIEVAL: Final = 1
_UTF8: Final = 1
_RATE: Final = 1
_WORDS_PER_MINUTE: Final = 175
_BUFFER_MS: Final = 200
_Heard = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """The library, loaded once."""

    def __init__(self) -> None:
        """Load the library and its data.

        Raises `LocalError` when it refuses to start.
        """
        import espeakng_loader

        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        self._heard: list[bytes] = []
        self._callback = _Heard(self._hear)
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate_hz: int = self._library.espeak_Initialize(_RETRIEVAL, _BUFFER_MS, data, 0)
        if self.rate_hz <= 0:
            raise LocalError("load the voices of espeak-ng: the library did not start")
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: str, speed: float) -> bytes:
        """Return 16-bit samples of one channel at `rate_hz`.

        Raises `InvalidRequest` for a language that espeak-ng has no voice for.
        """
        language = voice.removeprefix(PREFIX)
        is_known = _LANGUAGE.fullmatch(language) is not None
        if not is_known or self._library.espeak_SetVoiceByName(language.encode()) != 0:
            raise InvalidRequest(
                "'voice' names a language that espeak-ng does not speak",
                details={"param": "voice"},
            )
        self._library.espeak_SetParameter(_RATE, round(_WORDS_PER_MINUTE * speed), 0)
        data = text.encode()
        self._library.espeak_Synth(
            ctypes.c_char_p(data), ctypes.c_size_t(len(data) + 1), 0, 0, 0, _UTF8, None, None
        )
        self._library.espeak_Synchronize()
        heard = b"".join(self._heard)
        self._heard.clear()
        return heard

    def _hear(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._heard.append(ctypes.string_at(samples, 2 * count))
        return 0
