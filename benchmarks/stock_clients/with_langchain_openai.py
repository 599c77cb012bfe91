"""The `langchain-openai` package."""

from typing import Any

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from benchmarks.stock_clients import shared as s

ASKED = [HumanMessage(s.MESSAGES[0]["content"])]


def features(settings: s.Settings) -> dict[str, s.Feature]:
    """Return what the package can do, each as a call."""
    found = _Langchain(settings)
    return {
        "chat": found.chat,
        "stream": found.stream,
        "tools": found.tools,
        "tools_streamed": found.tools_streamed,
        "tool_choice_named": found.tool_choice_named,
        "json_schema": found.json_schema,
        "logprobs": found.logprobs,
        "n": found.n,
        "seed": found.seed,
        "stop": found.stop,
        "stream_usage": found.stream_usage,
        "completions": found.completions,
        "embeddings": found.embeddings,
        "responses": found.responses,
        "errors": found.errors,
    }


class _Langchain:
    def __init__(self, settings: s.Settings) -> None:
        self._settings = settings
        self._where: Any = {
            "base_url": settings.base_url,
            "api_key": settings.key,
            "max_retries": 0,
        }

    def _model(self, **fields: Any) -> ChatOpenAI:
        given: Any = {"model": self._settings.chat, "max_tokens": 24, **self._where, **fields}
        return ChatOpenAI(**given)

    def chat(self) -> None:
        answer = self._model().invoke(ASKED)
        s.expect(answer.content, "no words")
        s.expect(answer.usage_metadata and answer.usage_metadata["output_tokens"], "no usage")

    def stream(self) -> None:
        words = [chunk.content for chunk in self._model().stream(ASKED)]
        s.expect(len([word for word in words if word]) > 1, "not in pieces")

    def tools(self) -> None:
        model = self._model(max_tokens=80)
        answer = model.bind_tools(s.TOOLS, tool_choice="required").invoke(ASKED)
        (call,) = answer.tool_calls
        s.check_any_call(call["name"])
        turns = [*ASKED, answer, ToolMessage("18 degrees", tool_call_id=call["id"])]
        s.expect(model.bind_tools(s.TOOLS).invoke(turns) is not None, "no answer to a result")

    def tools_streamed(self) -> None:
        model = self._model(max_tokens=80).bind_tools(s.TOOLS, tool_choice="required")
        whole: Any = None
        for chunk in model.stream(ASKED):
            whole = chunk if whole is None else whole + chunk
        (call,) = whole.tool_calls
        s.check_any_call(call["name"])

    def tool_choice_named(self) -> None:
        model = self._model(max_tokens=80).bind_tools(s.TOOLS, tool_choice="get_weather")
        (call,) = model.invoke(ASKED).tool_calls
        s.check_call(call["name"], call["args"])

    def json_schema(self) -> None:
        schema = {"title": "place", **s.CITY}
        model = self._model(max_tokens=60).with_structured_output(schema, method="json_schema")
        found: Any = model.invoke(ASKED)
        s.expect(found["city"] in {"Paris", "Rome"}, f"not of the schema: {found}")
        called = self._model(max_tokens=80).with_structured_output(
            schema, method="function_calling"
        )
        found = called.invoke(ASKED)
        s.expect(found["city"] in {"Paris", "Rome"}, f"not of the schema: {found}")

    def logprobs(self) -> None:
        answer = self._model(logprobs=True, top_logprobs=2, max_tokens=3).invoke(ASKED)
        tokens = answer.response_metadata["logprobs"]["content"]
        s.expect(all(len(token["top_logprobs"]) == 2 for token in tokens), "not two alternatives")

    def n(self) -> None:
        model = self._model(n=2, temperature=1.5, max_tokens=8)
        s.expect(len(model.generate([ASKED]).generations[0]) == 2, "not two choices")

    def seed(self) -> None:
        model = self._model(seed=7, temperature=1.5)
        s.check_same(str(model.invoke(ASKED).content) for _ in range(2))

    def stop(self) -> None:
        model = self._model(temperature=0)
        word = str(model.invoke(ASKED).content).split()[2]
        stopped = model.invoke(ASKED, stop=[word])
        s.expect(word not in stopped.content, "the stop word is in the answer")

    def stream_usage(self) -> None:
        usages = [
            chunk.usage_metadata
            for chunk in self._model(stream_usage=True).stream(ASKED)
            if chunk.usage_metadata
        ]
        s.expect(usages and usages[-1]["output_tokens"] > 0, "no usage at the end")

    def completions(self) -> None:
        model = OpenAI(model=self._settings.chat, max_tokens=8, **self._where)
        s.expect(model.invoke(s.COUNTING), "no words")

    def embeddings(self) -> None:
        # Its own count of tokens is for OpenAI's models alone, and fetches their vocabulary.
        model = OpenAIEmbeddings(
            model=self._settings.model("embed"), check_embedding_ctx_length=False, **self._where
        )
        s.check_vectors(model.embed_documents(["the sea", "the sky"]))

    def responses(self) -> None:
        answer = self._model(use_responses_api=True).invoke(ASKED)
        s.expect(answer.content, "no words")

    def errors(self) -> None:
        stranger = s.raised(lambda: self._model(api_key="mk_wrong").invoke(ASKED))
        s.expect(isinstance(stranger, openai.AuthenticationError), f"401: {stranger!r}")
        missing = s.raised(lambda: self._model(model="nothing-of-that-name").invoke(ASKED))
        s.expect(isinstance(missing, openai.NotFoundError), f"404: {missing!r}")
        wrong = s.raised(lambda: self._model(temperature=9).invoke(ASKED))
        s.expect(isinstance(wrong, openai.BadRequestError), f"400: {wrong!r}")
        limited = self._model(api_key=self._settings.limited_key, max_tokens=2)
        refused = None
        for _ in range(2):
            try:
                limited.invoke(ASKED)
            except openai.RateLimitError as cause:
                refused = cause
        s.check_error(refused, 429)
