"""Vectors, transcripts and speech through a real Moulin with the stock `openai` client, to receipts."""

import base64
import io
import json
import wave
from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest

from tests.e2e.conftest import Shell
from tests.real_model import cache_directory
from tests.real_runtimes import packaged, runtime_command, runtimes_directory

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]

SAID = "The quick brown fox jumps over the lazy dog. Paris is the capital of France."
EMBEDDER, LISTENER, SPEAKER = "all-minilm-l6-v2", "whisper-base", "piper-en-us-joe"


@dataclass
class Served:
    """A Moulin that serves the three, and a client of it."""

    shell: Shell
    client: openai.OpenAI

    def receipt(self, name: str) -> dict:
        self.shell.until(
            lambda: self.shell.moulin("receipt", "show", name, "--json").returncode == 0
        )
        return self.shell.json("receipt", "show", name)


class MediaShell(Shell):
    """A shell whose Moulin finds the tests' models."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "MOULIN_MODELS": str(cache_directory() / "store")}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    for name in (EMBEDDER, LISTENER, SPEAKER):
        packaged(name)
    for name in ("speech_to_text", "text_to_speech"):
        runtime_command(name)
    shell = MediaShell(tmp_path_factory.mktemp("media"))
    try:
        shell.up("--country", "FR")
        refused = shell.moulin("deploy", LISTENER, "--source", "pypi")
        assert refused.returncode == 1
        assert "moulin runtime install speech_to_text" in refused.stderr
        (shell.data / "runtimes").symlink_to(runtimes_directory())
        for name in (EMBEDDER, LISTENER, SPEAKER):
            # Half a CPU each: three of them then fit where there are two.
            file = shell.folder / f"{name}.yaml"
            words = f"kind: endpoint\nname: {name}\nmodel: {name}\nresources: {{cpus: 0.5}}\n"
            file.write_text(words)
            shell.json("run", str(file))
        for name in (EMBEDDER, LISTENER, SPEAKER):
            done = shell.moulin("deploy", name)
            assert done.returncode == 0, done.stderr
        known = json.loads((shell.data / "credentials.json").read_text("utf-8"))
        with openai.OpenAI(
            base_url=f"{known['gateway_url']}/v1", api_key=known["api_key"], max_retries=0
        ) as client:
            yield Served(shell, client)
    finally:
        shell.close()


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_vectors_say_what_is_alike(served) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The budget was voted."]
    raw = served.client.embeddings.with_raw_response.create(model=EMBEDDER, input=texts)
    answer = raw.parse()
    cat, kitten, budget = (item.embedding for item in answer.data)
    assert len(cat) == 384
    assert cosine(cat, kitten) > 0.5
    assert cosine(cat, budget) < 0.2
    assert answer.usage.prompt_tokens == 25
    receipt = served.receipt(raw.headers["x-moulin-receipt"])
    assert receipt["usage"]["quantities"] == {"tokens_input": 25}
    assert receipt["charge"]["amount_neur"] == "2500"


def test_plain_numbers_and_packed_ones_are_the_same(served) -> None:
    asked = {"model": EMBEDDER, "input": "The same."}
    plain = served.client.embeddings.create(**asked, encoding_format="float")
    packed = served.client.embeddings.create(**asked)
    assert cosine(plain.data[0].embedding, packed.data[0].embedding) == pytest.approx(1.0, abs=1e-5)


def test_speech_is_understood_and_both_are_charged(served) -> None:
    raw = served.client.audio.speech.with_raw_response.create(
        model=SPEAKER, voice="joe", input=SAID, response_format="wav"
    )
    audio = raw.content
    assert raw.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(audio)) as file:
        length_ms = file.getnframes() * 1000 // file.getframerate()
    spoken = served.receipt(raw.headers["x-moulin-receipt"])
    assert spoken["usage"]["quantities"] == {"characters_input": len(SAID)}
    assert spoken["charge"]["amount_neur"] == str(len(SAID) * 8_000)

    heard = served.client.audio.transcriptions.with_raw_response.create(
        model=LISTENER, file=("say.wav", audio, "audio/wav")
    )
    words = heard.parse().text.lower()
    assert "quick brown fox" in words
    assert "france" in words
    receipt = served.receipt(heard.headers["x-moulin-receipt"])
    assert receipt["usage"]["quantities"]["audio_ms"] in range(length_ms - 5, length_ms + 6)
    assert receipt["usage"]["energy_mj"] != "0"


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "pcm"])
def test_every_format_is_spoken_and_every_container_heard(served, name) -> None:
    said = served.client.audio.speech.create(
        model=SPEAKER, voice="joe", input="Paris is the capital of France.", response_format=name
    ).read()
    if name == "pcm":
        assert len(said) > 24_000 * 2
        return
    heard = served.client.audio.transcriptions.create(model=LISTENER, file=(f"say.{name}", said))
    assert "france" in heard.text.lower()


def test_subtitles_words_and_plain_text(served) -> None:
    said = served.client.audio.speech.create(model=SPEAKER, voice="alloy", input=SAID).read()
    asked = {"model": LISTENER, "file": ("say.mp3", said), "language": "en"}
    listen = served.client.audio.transcriptions.create
    assert "00:00:00,000 --> " in listen(**asked, response_format="srt")
    assert listen(**asked, response_format="vtt").startswith("WEBVTT\n")
    assert "fox" in listen(**asked, response_format="text")
    full = listen(**asked, response_format="verbose_json", timestamp_granularities=["word"])
    assert {"fox", "dog"} <= {word.word.strip(".,").lower() for word in full.words}
    assert full.language == "en"


def test_a_labelled_voice_for_other_languages(served) -> None:
    said = served.client.audio.speech.create(
        model=SPEAKER, voice="espeak-ng-fr", input="Bonjour à tous.", response_format="wav"
    ).read()
    with wave.open(io.BytesIO(said)) as file:
        assert file.getnframes() > file.getframerate() // 2


# OpenAI retires its own model for this and says so in its client.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_french_is_translated_into_english_and_charged_by_its_length(served) -> None:
    said = served.client.audio.speech.create(
        model=SPEAKER,
        voice="espeak-ng-fr",
        input="Bonjour. Je voudrais acheter deux billets de train pour Paris.",
        response_format="wav",
    ).read()
    asked = {"model": LISTENER, "file": ("say.wav", said, "audio/wav"), "temperature": 0}
    french = served.client.audio.transcriptions.create(**asked, language="fr").text.lower()
    heard = served.client.audio.translations.with_raw_response.create(**asked)
    words = heard.parse().text.lower()
    assert "bonjour" in french
    assert "hello" in words or "good morning" in words
    assert "bonjour" not in words
    receipt = served.receipt(heard.headers["x-moulin-receipt"])
    assert set(receipt["usage"]["quantities"]) == {"audio_ms"}
    full = served.client.audio.translations.create(**asked, response_format="verbose_json")
    assert full.language == "english"
    assert full.segments
    with pytest.raises(openai.BadRequestError, match="language"):
        served.client.audio.translations.create(**asked, extra_body={"language": "fr"})


def test_speech_comes_as_events_where_they_are_asked_for(served) -> None:
    asked = {"model": SPEAKER, "voice": "joe", "input": SAID, "response_format": "wav"}
    with served.client.audio.speech.with_streaming_response.create(
        **asked, stream_format="sse"
    ) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [
            json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.strip()
        ]
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"]["input_characters"] == len(SAID)
    audio = base64.b64decode("".join(each["audio"] for each in events[:-1]))
    with wave.open(io.BytesIO(audio)) as file:
        assert file.getnframes() > file.getframerate()


def test_vectors_are_never_shortened_and_the_error_is_openais(served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.embeddings.create(model=EMBEDDER, input="x", dimensions=128)
    assert caught.value.body == {
        "message": "This model does not support specifying dimensions.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_what_a_model_does_not_do_is_said(served) -> None:
    with pytest.raises(openai.BadRequestError, match="model to embed"):
        served.client.audio.speech.create(model=EMBEDDER, voice="joe", input="x")
    with pytest.raises(openai.BadRequestError, match="model to transcribe"):
        served.client.chat.completions.create(
            model=LISTENER, messages=[{"role": "user", "content": "x"}]
        )
    with pytest.raises(openai.BadRequestError, match="more tokens than the 512"):
        served.client.embeddings.create(model=EMBEDDER, input="word " * 600)
    with pytest.raises(openai.BadRequestError, match="no audio that can be read"):
        served.client.audio.transcriptions.create(model=LISTENER, file=("a.wav", b"nothing"))
    with pytest.raises(openai.BadRequestError, match="'voice' must be joe"):
        served.client.audio.speech.create(model=SPEAKER, voice="nobody", input="x")
