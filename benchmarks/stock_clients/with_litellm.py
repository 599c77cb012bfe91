"""The `litellm` package as a client of an OpenAI-compatible service."""

import json
import os
from typing import Any

from benchmarks.stock_clients import shared as s

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for a price list

import litellm

litellm.suppress_debug_info = True


def features(settings: s.Settings) -> dict[str, s.Feature]:
    """Return what the package can do, each as a call."""
    with_chat = _Chat(settings)
    with_rest = _Rest(settings)
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
        "embeddings": with_rest.embeddings,
        "responses": with_rest.responses,
        "files": with_rest.files,
        "batches": with_rest.batches,
        "transcription": with_rest.transcription,
        "speech": with_rest.speech,
        "errors": with_rest.errors,
    }


class _Chat(s.ChatChecks):
    def __init__(self, settings: s.Settings) -> None:
        self._where = {"api_base": settings.base_url, "api_key": settings.key, "num_retries": 0}
        self._model = f"openai/{settings.chat}"

    def _ask(self, **fields: Any) -> Any:
        asked: Any = {
            "model": self._model,
            "messages": s.MESSAGES,
            "max_tokens": 24,
            **self._where,
            **fields,
        }
        return litellm.completion(**asked)

    def chat(self) -> None:
        answer = self._ask(user="someone")
        s.expect(answer.choices[0].message.content, "no words")
        s.expect(answer.usage.completion_tokens > 0, "no usage")

    def stream(self) -> None:
        words = [chunk.choices[0].delta.content for chunk in self._ask(stream=True)]
        s.expect(len([word for word in words if word]) > 1, "not in pieces")

    def tools(self) -> None:
        choice = self._ask(tools=s.TOOLS, tool_choice="required", max_tokens=80).choices[0]
        s.expect(choice.finish_reason == "tool_calls", f"ended with {choice.finish_reason}")
        (call,) = choice.message.tool_calls
        s.check_any_call(call.function.name)
        result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
        turns = [*s.MESSAGES, choice.message, result]
        s.expect(self._ask(messages=turns, tools=s.TOOLS).choices, "no answer to a result")

    def tools_streamed(self) -> None:
        chunks = list(self._ask(tools=s.TOOLS, tool_choice="required", max_tokens=80, stream=True))
        whole: Any = litellm.stream_chunk_builder(chunks, messages=s.MESSAGES)
        (call,) = whole.choices[0].message.tool_calls
        s.check_any_call(call.function.name)
        json.loads(call.function.arguments)

    def stream_usage(self) -> None:
        chunks = list(self._ask(stream=True, stream_options={"include_usage": True}))
        usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        s.expect(usages and usages[-1].completion_tokens > 0, "no usage at the end")


class _Rest:
    def __init__(self, settings: s.Settings) -> None:
        self._settings = settings
        self._where: Any = {"api_base": settings.base_url, "api_key": settings.key}
        self._provider: Any = {"custom_llm_provider": "openai", **self._where}

    def completions(self) -> None:
        model = f"text-completion-openai/{self._settings.chat}"
        answer: Any = litellm.text_completion(
            model=model, prompt=s.COUNTING, max_tokens=8, **self._where
        )
        s.expect(answer.choices[0].text, "no words")

    def embeddings(self) -> None:
        model = f"openai/{self._settings.model('embed')}"
        answer: Any = litellm.embedding(model=model, input=["the sea", "the sky"], **self._where)
        s.check_vectors([each["embedding"] for each in answer.data])

    def responses(self) -> None:
        model = f"openai/{self._settings.chat}"
        answer: Any = litellm.responses(
            model=model, input="Say hello.", max_output_tokens=16, **self._where
        )
        s.expect([each for each in answer.output if each.type == "message"], "no message")

    def _upload(self) -> Any:
        file: Any = ("lines.jsonl", s.batch_lines(self._settings.chat))
        return litellm.create_file(file=file, purpose="batch", **self._provider)

    def files(self) -> None:
        kept = self._upload()
        found: Any = litellm.file_retrieve(file_id=kept.id, **self._provider)
        s.expect(found.id == kept.id, "not kept")
        deleted: Any = litellm.file_delete(file_id=kept.id, **self._provider)
        s.expect(deleted.deleted, "not deleted")

    def batches(self) -> None:
        made: Any = litellm.create_batch(
            completion_window="24h",
            endpoint="/v1/chat/completions",
            input_file_id=self._upload().id,
            **self._provider,
        )
        done = {"completed", "failed", "expired", "cancelled"}

        def state() -> str:
            found: Any = litellm.retrieve_batch(batch_id=made.id, **self._provider)
            return str(found.status)

        s.wait_until(lambda: state() in done, "batch done")
        s.expect(state() == "completed", f"the batch is {state()}")

    def transcription(self) -> None:
        model = f"openai/{self._settings.model('transcribe')}"
        file: Any = ("a.wav", s.sound())
        answer: Any = litellm.transcription(model=model, file=file, **self._where)
        s.expect(isinstance(answer.text, str), "no text")

    def speech(self) -> None:
        model = f"openai/{self._settings.model('speak')}"
        answer: Any = litellm.speech(
            model=model, input="Good morning.", voice="alloy", response_format="wav", **self._where
        )
        s.expect(answer.content[:4] == b"RIFF", "no WAV")

    def errors(self) -> None:
        s.check_error(s.raised(lambda: self._ask(api_key="mk_wrong")), 401)
        s.check_error(s.raised(lambda: self._ask(model="openai/nothing-of-that-name")), 404)
        s.check_error(s.raised(lambda: self._ask(temperature=9)), 400)
        refused = None
        for _ in range(2):
            try:
                self._ask(api_key=self._settings.limited_key)
            except litellm.exceptions.RateLimitError as cause:
                refused = cause
        s.check_error(refused, 429)

    def _ask(self, **fields: Any) -> Any:
        asked: Any = {
            "model": f"openai/{self._settings.chat}",
            "messages": s.MESSAGES,
            "max_tokens": 2,
            "num_retries": 0,
            "max_retries": 0,
            **self._where,
            **fields,
        }
        return litellm.completion(**asked)
