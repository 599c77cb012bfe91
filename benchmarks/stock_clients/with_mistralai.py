"""The `mistralai` package."""

import base64
from typing import Any

from mistralai.client import Mistral
from mistralai.client import errors as mistral_errors

from benchmarks.stock_clients import shared as s


def features(settings: s.Settings) -> dict[str, s.Feature]:
    """Return what the package can do, each as a call."""
    mistral = Mistral(server_url=settings.url, api_key=settings.key)
    with_chat = _Chat(mistral, settings)
    with_rest = _Rest(mistral, settings)
    return {
        "chat": with_chat.chat,
        "stream": with_chat.stream,
        "tools": with_chat.tools,
        "tools_streamed": with_chat.tools_streamed,
        "tool_choice_named": with_chat.tool_choice_named,
        "json_schema": with_chat.json_schema,
        "n": with_chat.n,
        "seed": with_chat.seed,
        "stop": with_chat.stop,
        "safe_prompt": with_chat.safe_prompt,
        "stream_usage": with_chat.stream_usage,
        "fim": with_rest.fim,
        "embeddings": with_rest.embeddings,
        "models": with_rest.models,
        "files": with_rest.files,
        "batches": with_rest.batches,
        "transcription": with_rest.transcription,
        "speech": with_rest.speech,
        "errors": with_rest.errors,
    }


class _Chat(s.ChatChecks):
    def __init__(self, mistral: Mistral, settings: s.Settings) -> None:
        self._mistral = mistral
        self._model = settings.chat

    def _ask(self, **fields: Any) -> Any:
        asked = {"model": self._model, "messages": s.MESSAGES, "max_tokens": 24, **fields}
        return self._mistral.chat.complete(**asked)

    def _stream(self, **fields: Any) -> Any:
        asked = {"model": self._model, "messages": s.MESSAGES, "max_tokens": 24, **fields}
        return [event.data for event in self._mistral.chat.stream(**asked)]

    def chat(self) -> None:
        answer = self._ask()
        s.expect(answer.choices[0].message.content, "no words")
        s.expect(answer.usage.total_tokens > answer.usage.completion_tokens > 0, "no usage")

    def stream(self) -> None:
        words = [chunk.choices[0].delta.content for chunk in self._stream() if chunk.choices]
        s.expect(len([word for word in words if word]) > 1, "not in pieces")

    def tools(self) -> None:
        free = self._ask(tools=s.TOOLS, temperature=0, max_tokens=60).choices[0]
        for call in free.message.tool_calls or ():
            s.check_any_call(call.function.name)
        choice = self._ask(tools=s.TOOLS, tool_choice="any", max_tokens=80).choices[0]
        s.expect(choice.finish_reason == "tool_calls", f"ended with {choice.finish_reason}")
        (call,) = choice.message.tool_calls
        s.check_any_call(call.function.name)
        result = {
            "role": "tool",
            "name": call.function.name,
            "tool_call_id": call.id,
            "content": "18",
        }
        turns = [*s.MESSAGES, choice.message, result]
        s.expect(self._ask(messages=turns, tools=s.TOOLS).choices, "no answer to a result")

    def tools_streamed(self) -> None:
        chunks = self._stream(tools=s.TOOLS, tool_choice="any", max_tokens=80)
        calls = [
            call for c in chunks for choice in c.choices for call in choice.delta.tool_calls or ()
        ]
        (call,) = calls
        s.check_any_call(call.function.name)

    def n(self) -> None:
        answer = self._ask(n=2, temperature=1.5, max_tokens=12)
        s.expect([choice.index for choice in answer.choices] == [0, 1], "not two choices")

    def seed(self) -> None:
        answers = [self._ask(random_seed=7, temperature=1.5).choices[0] for _ in range(2)]
        s.check_same(choice.message.content for choice in answers)

    def safe_prompt(self) -> None:
        free, safe = (self._ask(safe_prompt=flag).usage.prompt_tokens for flag in (False, True))
        s.expect(safe > free + 10, "nothing was put before the conversation")

    def stream_usage(self) -> None:
        usages = [chunk.usage for chunk in self._stream() if chunk.usage]
        s.expect(usages and usages[-1].completion_tokens > 0, "no usage at the end")


class _Rest:
    def __init__(self, mistral: Mistral, settings: s.Settings) -> None:
        self._mistral = mistral
        self._settings = settings

    def fim(self) -> None:
        asked: Any = {
            "model": self._settings.chat,
            "prompt": "def add(a, b):\n    return ",
            "suffix": "\n\nprint(add(1, 2))",
            "max_tokens": 8,
            "temperature": 0,
        }
        answer: Any = self._mistral.fim.complete(**asked)
        s.expect(answer.choices[0].message.content, "no words")
        events = list(self._mistral.fim.stream(**asked))
        words = [c.delta.content for event in events for c in event.data.choices]
        s.expect("".join(word for word in words if isinstance(word, str)), "no words streamed")

    def embeddings(self) -> None:
        model = self._settings.model("embed")
        answer = self._mistral.embeddings.create(model=model, inputs=["the sea", "the sky"])
        s.check_vectors([each.embedding or [] for each in answer.data])

    def models(self) -> None:
        cards: Any = self._mistral.models.list().data
        names = [card.id for card in cards]
        s.expect(self._settings.chat in names, f"not among {names}")
        card: Any = self._mistral.models.retrieve(model_id=self._settings.chat)
        s.expect(card.capabilities.completion_chat, "no card")

    def _upload(self) -> str:
        file: Any = {"file_name": "lines.jsonl", "content": s.mistral_lines()}
        return self._mistral.files.upload(file=file, purpose="batch").id

    def files(self) -> None:
        kept = self._upload()
        s.expect(kept in [each.id for each in self._mistral.files.list().data], "not listed")
        s.expect(self._mistral.files.download(file_id=kept).read() == s.mistral_lines(), "content")
        s.expect(self._mistral.files.delete(file_id=kept).deleted, "not deleted")

    def batches(self) -> None:
        kept = self._upload()
        jobs = self._mistral.batch.jobs
        model = self._settings.chat
        made = jobs.create(input_files=[kept], model=model, endpoint="/v1/chat/completions")
        going = {"QUEUED", "RUNNING"}
        s.wait_until(lambda: jobs.get(job_id=made.id).status not in going, "job done")
        job = jobs.get(job_id=made.id)
        s.expect(job.status == "SUCCESS", f"the job is {job.status}")
        output = self._mistral.files.download(file_id=str(job.output_file)).read().decode()
        s.expect(len(output.splitlines()) == 2, "not two lines")

    def transcription(self) -> None:
        model = self._settings.model("transcribe")
        file: Any = {"file_name": "a.wav", "content": s.sound()}
        answer = self._mistral.audio.transcriptions.complete(model=model, file=file)
        s.expect(isinstance(answer.text, str), "no text")

    def speech(self) -> None:
        model = self._settings.model("speak")
        answer: Any = self._mistral.audio.speech.complete(
            model=model, input="Good morning.", response_format="wav"
        )
        s.expect(base64.b64decode(answer.audio_data)[:4] == b"RIFF", "no WAV")

    def errors(self) -> None:
        stranger = Mistral(server_url=self._settings.url, api_key="mk_wrong")
        s.check_error(s.raised(stranger.models.list), 401)
        s.check_error(s.raised(lambda: self._ask("nothing-of-that-name")), 404)
        wrong: Any = s.raised(lambda: self._ask(self._settings.chat, temperature=9))
        s.expect(isinstance(wrong, mistral_errors.HTTPValidationError), f"422: {wrong!r}")
        s.expect(wrong.data.detail[0].loc[-1] == "temperature", "it does not name the parameter")
        limited = Mistral(server_url=self._settings.url, api_key=self._settings.limited_key)
        calls = [lambda: _hello(limited, self._settings.chat) for _ in range(2)]
        refused = [cause for cause in map(_refusal, calls) if cause]
        s.check_error(refused[-1] if refused else None, 429)

    def _ask(self, model: str, **fields: Any) -> Any:
        return self._mistral.chat.complete(model=model, messages=s.MESSAGES, max_tokens=2, **fields)


def _hello(mistral: Mistral, model: str) -> Any:
    return mistral.chat.complete(model=model, messages=s.MESSAGES, max_tokens=2)


def _refusal(call: s.Feature) -> Exception | None:
    try:
        call()
    except mistral_errors.MistralError as cause:
        return cause
    return None
