"""The `openai` package."""

import json
from typing import Any

import openai

from benchmarks.stock_clients import shared as s


def features(settings: s.Settings) -> dict[str, s.Feature]:
    """Return what the package can do, each as a call."""
    gpt = openai.OpenAI(base_url=settings.base_url, api_key=settings.key, max_retries=0)
    with_chat = _Chat(gpt, settings)
    with_rest = _Rest(gpt, settings)
    return {
        "chat": with_chat.chat,
        "stream": with_chat.stream,
        "tools": with_chat.tools,
        "tools_streamed": with_chat.tools_streamed,
        "tool_choice_named": with_chat.tool_choice_named,
        "json_schema": with_chat.json_schema,
        "logprobs": with_chat.logprobs,
        "n": with_chat.n,
        "seed": with_chat.seed,
        "stop": with_chat.stop,
        "stream_usage": with_chat.stream_usage,
        "completions": with_rest.completions,
        "fim": with_rest.fim,
        "embeddings": with_rest.embeddings,
        "responses": with_rest.responses,
        "models": with_rest.models,
        "files": with_rest.files,
        "batches": with_rest.batches,
        "transcription": with_rest.transcription,
        "speech": with_rest.speech,
        "errors": with_rest.errors,
    }


class _Chat(s.ChatChecks):
    def __init__(self, gpt: openai.OpenAI, settings: s.Settings) -> None:
        self._gpt = gpt
        self._model = settings.chat

    def _ask(self, **fields: Any) -> Any:
        asked = {"model": self._model, "messages": s.MESSAGES, "max_tokens": 24, **fields}
        return self._gpt.chat.completions.create(**asked)

    def chat(self) -> None:
        answer = self._ask(user="someone", metadata={"a": "b"})
        s.expect(answer.choices[0].message.content, "no words")
        usage = answer.usage
        s.expect(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, "sums")

    def stream(self) -> None:
        words = [c.choices[0].delta.content for c in self._ask(stream=True) if c.choices]
        s.expect(len([word for word in words if word]) > 1, "not in pieces")

    def tools(self) -> None:
        free = self._ask(tools=s.TOOLS, temperature=0, max_tokens=60).choices[0]
        for call in free.message.tool_calls or ():
            s.check_any_call(call.function.name)
        choice = self._ask(tools=s.TOOLS, tool_choice="required", max_tokens=80).choices[0]
        s.expect(choice.finish_reason == "tool_calls", f"ended with {choice.finish_reason}")
        (call,) = choice.message.tool_calls
        s.check_any_call(call.function.name)
        result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
        turns = [*s.MESSAGES, choice.message, result]
        s.expect(self._ask(messages=turns, tools=s.TOOLS).choices, "no answer to a result")

    def tools_streamed(self) -> None:
        asked: Any = {"tools": s.TOOLS, "tool_choice": "required", "max_tokens": 80}
        with self._gpt.chat.completions.stream(
            model=self._model, messages=s.MESSAGES, **asked
        ) as stream:
            for _ in stream:
                pass
            choice = stream.get_final_completion().choices[0]
        s.expect(choice.finish_reason == "tool_calls", f"ended with {choice.finish_reason}")
        calls = choice.message.tool_calls or []
        s.expect(len(calls) == 1, f"{len(calls)} calls")
        s.check_any_call(calls[0].function.name)

    def logprobs(self) -> None:
        answer = self._ask(logprobs=True, top_logprobs=2, max_tokens=3)
        tokens = answer.choices[0].logprobs.content
        s.expect(len(tokens) == 3, f"{len(tokens)} tokens")
        s.expect(all(len(token.top_logprobs) == 2 for token in tokens), "not two alternatives")
        text = self._gpt.completions.create(
            model=self._model, prompt=s.COUNTING, max_tokens=3, logprobs=2
        )
        found: Any = text.choices[0].logprobs
        s.expect(len(found.token_logprobs) == 3, "completions have another form")

    def n(self) -> None:
        answer = self._ask(n=3, temperature=1.5, max_tokens=12)
        s.expect([choice.index for choice in answer.choices] == [0, 1, 2], "not three choices")
        s.expect(len({choice.message.content for choice in answer.choices}) > 1, "all alike")
        chunks = list(self._ask(n=2, stream=True, max_tokens=6))
        s.expect({c.choices[0].index for c in chunks if c.choices} == {0, 1}, "not two streams")

    def stop(self) -> None:
        answer = self._gpt.completions.create(
            model=self._model, prompt=s.COUNTING, max_tokens=24, stop=["8"], temperature=0
        )
        s.check_stopped(answer.choices[0].text, answer.choices[0].finish_reason)

    def stream_usage(self) -> None:
        chunks = list(self._ask(stream=True, stream_options={"include_usage": True}))
        s.expect(chunks[-1].usage and chunks[-1].usage.completion_tokens > 0, "no usage at the end")
        s.expect(not chunks[-1].choices, "the usage has choices")


class _Rest:
    def __init__(self, gpt: openai.OpenAI, settings: s.Settings) -> None:
        self._gpt = gpt
        self._settings = settings

    def completions(self) -> None:
        model = self._settings.chat
        answer = self._gpt.completions.create(model=model, prompt=s.COUNTING, max_tokens=8)
        s.expect(answer.choices[0].text, "no words")
        stream = self._gpt.completions.create(
            model=model, prompt=s.COUNTING, max_tokens=8, stream=True
        )
        s.expect("".join(chunk.choices[0].text for chunk in stream if chunk.choices), "no stream")

    def fim(self) -> None:
        answer = self._gpt.completions.create(
            model=self._settings.chat,
            prompt="def add(a, b):\n    return ",
            suffix="\n\nprint(add(1, 2))",
            max_tokens=8,
            temperature=0,
        )
        s.expect(answer.choices[0].text, "no words")

    def embeddings(self) -> None:
        model = self._settings.model("embed")
        answer = self._gpt.embeddings.create(model=model, input=["the sea", "the sky"])
        s.check_vectors([each.embedding for each in answer.data])

    def responses(self) -> None:
        model: Any = self._settings.chat
        answer = self._gpt.responses.create(model=model, input="Say hello.", max_output_tokens=16)
        s.expect(answer.output_text, "no words")
        events = self._gpt.responses.create(
            model=model, input="Say hello.", max_output_tokens=16, stream=True
        )
        kinds = [event.type for event in events]
        s.expect("response.output_text.delta" in kinds, "no words streamed")
        s.expect(kinds[-1] in {"response.completed", "response.incomplete"}, f"ended {kinds[-1]}")
        kept = self._gpt.responses.create(
            model=model, input="Say hello.", max_output_tokens=16, store=True
        )
        s.expect(self._gpt.responses.retrieve(kept.id).id == kept.id, "not kept")
        self._gpt.responses.delete(kept.id)
        tool: Any = {"type": "function", "strict": True, **s.WEATHER["function"]}
        named: Any = {"type": "function", "name": "get_weather"}
        called = self._gpt.responses.create(
            model=model, input="Weather in Paris?", tools=[tool], tool_choice=named
        )
        (call,) = [each for each in called.output if each.type == "function_call"]
        s.check_call(call.name, call.arguments)

    def models(self) -> None:
        names = [model.id for model in self._gpt.models.list()]
        s.expect(self._settings.chat in names, f"not among {names}")
        s.expect(self._gpt.models.retrieve(self._settings.chat).object == "model", "no card")

    def files(self) -> None:
        lines = s.batch_lines(self._settings.chat)
        kept = self._gpt.files.create(file=("lines.jsonl", lines), purpose="batch")
        s.expect(kept.id in [each.id for each in self._gpt.files.list()], "not listed")
        s.expect(self._gpt.files.content(kept.id).read() == lines, "other content")
        s.expect(self._gpt.files.delete(kept.id).deleted, "not deleted")

    def batches(self) -> None:
        lines = s.batch_lines(self._settings.chat)
        kept = self._gpt.files.create(file=("lines.jsonl", lines), purpose="batch")
        made = self._gpt.batches.create(
            input_file_id=kept.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        done = {"completed", "failed", "expired", "cancelled"}
        s.wait_until(lambda: self._gpt.batches.retrieve(made.id).status in done, "batch done")
        batch = self._gpt.batches.retrieve(made.id)
        s.expect(batch.status == "completed", f"the batch is {batch.status}")
        output = self._gpt.files.content(str(batch.output_file_id)).read().decode()
        found = {json.loads(line)["custom_id"] for line in output.splitlines()}
        s.expect(found == {"line-0", "line-1"}, f"lines {found}")
        other = self._gpt.batches.create(
            input_file_id=kept.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        s.expect(self._gpt.batches.cancel(other.id).id == other.id, "not cancelled")

    def transcription(self) -> None:
        model = self._settings.model("transcribe")
        answer = self._gpt.audio.transcriptions.create(model=model, file=("a.wav", s.sound()))
        s.expect(isinstance(answer.text, str), "no text")

    def speech(self) -> None:
        model = self._settings.model("speak")
        said: Any = {"voice": "alloy", "response_format": "wav"}
        answer = self._gpt.audio.speech.create(model=model, input="Good morning.", **said)
        s.expect(answer.read()[:4] == b"RIFF", "no WAV")

    def errors(self) -> None:
        stranger = self._gpt.with_options(api_key="mk_wrong")
        unknown = s.raised(stranger.models.list)
        s.expect(isinstance(unknown, openai.AuthenticationError), f"401: {unknown!r}")
        missing = s.raised(lambda: self._ask("nothing-of-that-name"))
        s.expect(isinstance(missing, openai.NotFoundError), f"404: {missing!r}")
        wrong: Any = s.raised(lambda: self._ask(self._settings.chat, temperature=9))
        s.expect(isinstance(wrong, openai.BadRequestError), f"400: {wrong!r}")
        s.expect(wrong.param == "temperature" and wrong.code, "it does not name the parameter")
        limited = self._gpt.with_options(api_key=self._settings.limited_key)
        refusals = [_refusal(limited, self._settings.chat) for _ in range(2)]
        s.expect(isinstance(refusals[-1], openai.RateLimitError), f"429: {refusals!r}")

    def _ask(self, model: str, **fields: Any) -> Any:
        return self._gpt.chat.completions.create(
            model=model, messages=s.MESSAGES, max_tokens=2, **fields
        )


def _refusal(gpt: openai.OpenAI, model: str) -> Exception | None:
    try:
        gpt.chat.completions.create(model=model, messages=s.MESSAGES, max_tokens=2)
    except openai.APIStatusError as cause:
        return cause
    return None
