"""Turns documents into press briefs: JSON by schema, through a model endpoint, each with its origin.

    python -m moulin.runtimes.briefs --documents DIR --output FILE --base-url URL --model NAME
        --key-file FILE

It asks one document at a time with the stock `openai` client and writes one line of JSON for each,
durable before the next is asked for. A second try of the same job goes on where the first stopped.
Beside the output, FILE.effects.jsonl says which process did what, so that anybody can check from
outside whether a job ran once. It never prints a key, a document or an answer.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

if TYPE_CHECKING:
    from openai import OpenAI

TRIES_MAX: Final = 3
# The longest answer the schema allows is about 1,300 characters; Chinese needs a token for each.
TOKENS_OUTPUT_MAX: Final = 1_400
REQUEST_S: Final = 300.0
_STARTED_FIELD: Final = 19  # of /proc/PID/stat after the name: field 22, clock ticks since boot

INSTRUCTIONS: Final = (
    "You are a careful press officer. You summarise a news text in the language it is written in, "
    "with its own names and figures, as JSON."
)


def _marking_cuts(characters_max: int) -> AfterValidator:
    """Return what ends a text that ran into its bound after its last whole word, with a mark."""

    def mark(text: str) -> str:
        if len(text) < characters_max:
            return text
        return f"{text[: characters_max - 1].rpartition(' ')[0] or text[: characters_max - 1]}…"

    return AfterValidator(mark)


Word = Annotated[str, Field(min_length=1, max_length=40), _marking_cuts(40)]
Phrase = Annotated[str, Field(min_length=1, max_length=60), _marking_cuts(60)]
Headline = Annotated[str, Field(min_length=1, max_length=100), _marking_cuts(100)]
Clause = Annotated[str, Field(min_length=1, max_length=140), _marking_cuts(140)]
Summary = Annotated[str, Field(min_length=1, max_length=360), _marking_cuts(360)]
Tag = Annotated[str, Field(min_length=1, max_length=24)]


class Player(BaseModel):
    """An organisation in the news and its part in it."""

    name: Word
    role: Phrase


class Impact(BaseModel):
    """What the news means for one sector."""

    sector: Word
    level: Literal["high", "medium", "low"]
    why: Clause


class Brief(BaseModel):
    """A digest of one document; `language` is the one the brief is written in."""

    language: Literal[
        "bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "ga", "hr", "hu", "it", "lt",
        "lv", "mt", "nl", "pl", "pt", "ro", "sk", "sl", "sv", "ar", "ja", "uk", "zh",
    ]  # fmt: skip
    title: Headline
    summary: Summary
    key_players: list[Player] = Field(min_length=1, max_length=3)
    impact: list[Impact] = Field(min_length=1, max_length=2)
    tags: list[Tag] = Field(min_length=2, max_length=4)


SCHEMA: Final[Any] = {"name": "brief", "strict": True, "schema": Brief.model_json_schema()}


class NoBrief(Exception):
    """The model gave nothing that fits the schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What to do: which documents, through which endpoint, where to write."""

    documents: Path
    output: Path
    base_url: str
    model: str
    key: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Brief every document that has none yet; return 1 when one could not be."""
    parser = argparse.ArgumentParser(prog="moulin.runtimes.briefs", description=__doc__)
    parser.add_argument("--documents", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--key-file", required=True, type=Path)
    given = parser.parse_args(arguments)
    assignment = Assignment(
        documents=given.documents,
        output=given.output,
        base_url=given.base_url,
        model=given.model,
        key=given.key_file.read_text(encoding="ascii").strip(),
    )
    return work(assignment)


def work(assignment: Assignment) -> int:
    """Write a brief of each document; return the exit status."""
    from openai import OpenAI, OpenAIError

    effects = assignment.output.with_name(f"{assignment.output.name}.effects.jsonl")
    _append(effects, {"event": "started", **_who()})
    client = OpenAI(
        base_url=assignment.base_url, api_key=assignment.key, max_retries=5, timeout=REQUEST_S
    )
    done = {line["document"] for line in _lines(assignment.output)}
    for path in sorted(assignment.documents.iterdir()):
        if path.name in done:
            continue
        print(f"reading {path.name}", flush=True)
        try:
            line = brief(client, assignment.model, path)
        except (OpenAIError, NoBrief) as problem:
            print(f"error: brief {path.name}: {problem}", file=sys.stderr)
            return 1
        _append(assignment.output, line)
        _append(effects, {"event": "briefed", "document": path.name, **_who()})
        print(f"briefed {path.name}", flush=True)
    _append(effects, {"event": "ended", **_who()})
    return 0


def brief(client: "OpenAI", model: str, path: Path) -> dict[str, Any]:
    """Return one line of the output: the brief of a document and where it comes from.

    Raises `NoBrief` when no try gave JSON that fits the schema, or the client's own error.
    """
    text = path.read_text(encoding="utf-8")
    for attempt in range(TRIES_MAX):
        raw = client.chat.completions.with_raw_response.create(
            model=model,
            response_format={"type": "json_schema", "json_schema": SCHEMA},
            temperature=0.0 if attempt == 0 else 0.7,
            seed=attempt,
            max_tokens=TOKENS_OUTPUT_MAX,
            messages=[
                {"role": "system", "content": INSTRUCTIONS},
                {"role": "user", "content": text},
            ],
        )
        answer = raw.parse()
        try:
            found = Brief.model_validate_json(answer.choices[0].message.content or "")
        except ValidationError:
            continue
        return {
            "document": path.name,
            "brief": found.model_dump(),
            "provenance": _provenance(model, raw.headers, answer.usage),
        }
    raise NoBrief(f"{TRIES_MAX} answers did not fit the schema")


def _provenance(model: str, headers: Any, usage: Any) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "provider": "moulin",
        "model": model,
        "zone": headers.get("x-moulin-zone", ""),
        "request": headers.get("x-request-id", ""),
        "receipt": headers.get("x-moulin-receipt", ""),
        "tokens_input": usage.prompt_tokens if usage else 0,
        "tokens_output": usage.completion_tokens if usage else 0,
    }


def started_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: with the pid it names it for good."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[_STARTED_FIELD])


def _who() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started_ticks": started_ticks(os.getpid()),
        "generation": os.environ.get("MOULIN_GENERATION", ""),
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    sys.exit(main())
