"""The press job against an endpoint that answers as told: schema, tries, second starts, secrets."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moulin.runtimes.briefs import Brief, main

SECRET = "mk_not-for-anybody-else"
GOOD = {
    "language": "fr",
    "title": "Titre",
    "summary": "Un fait.",
    "key_players": [{"name": "Meunerie", "role": "exploitant"}],
    "impact": [{"sector": "énergie", "level": "low", "why": "peu"}],
    "tags": ["a", "b"],
}


class Endpoint:
    """Answers each call with the next of `answers`, the last one for ever; remembers what came."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = [(200, json.dumps(GOOD))]
        self.asked: list[dict] = []
        self.keys: list[str] = []
        self.url = ""

    def answer(self) -> tuple[int, str]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def handler_of(endpoint: Endpoint) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            endpoint.asked.append(json.loads(body))
            endpoint.keys.append(self.headers["authorization"])
            status, content = endpoint.answer()
            message = {"role": "assistant", "content": content}
            found = {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
            }
            data = json.dumps(found if status == 200 else {"error": {"message": content}}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in (("zone", "hall-a"), ("receipt", f"rcp_{len(endpoint.asked)}")):
                self.send_header(f"x-moulin-{name}", value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            """Say nothing."""

    return Handler


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    opened = Endpoint()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(opened))
    opened.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield opened
    server.shutdown()
    thread.join()
    server.server_close()


def run(endpoint: Endpoint, folder: Path, **documents: str) -> int:
    (folder / "in").mkdir(exist_ok=True)
    for name, text in documents.items():
        (folder / "in" / f"{name}.txt").write_text(text, "utf-8")
    (folder / "key").write_text(SECRET)
    return main(
        [
            *("--documents", str(folder / "in"), "--output", str(folder / "out.jsonl")),
            *("--base-url", endpoint.url, "--model", "m"),
            *("--key-file", str(folder / "key")),
        ]
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_document_becomes_a_brief_with_its_origin(endpoint, tmp_path, capfd):
    assert run(endpoint, tmp_path, a="premier texte secret", b="deuxième") == 0
    first, second = lines(tmp_path / "out.jsonl")
    assert (first["document"], second["document"]) == ("a.txt", "b.txt")
    assert Brief.model_validate(first["brief"]).model_dump() == GOOD
    origin = first["provenance"]
    assert (origin["provider"], origin["model"], origin["zone"]) == ("moulin", "m", "hall-a")
    assert (origin["receipt"], origin["tokens_input"], origin["tokens_output"]) == ("rcp_1", 7, 5)
    schema = endpoint.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(GOOD)
    assert endpoint.keys == [f"Bearer {SECRET}"] * 2
    said = "".join(capfd.readouterr())
    assert "briefed b.txt" in said
    for hidden in (SECRET, "texte secret", "Titre"):
        assert hidden not in said
    assert SECRET not in (tmp_path / "out.jsonl").read_text("utf-8")


def test_an_answer_outside_the_schema_is_asked_for_again(endpoint, tmp_path):
    endpoint.answers = [
        (200, "not JSON"),
        (200, json.dumps({**GOOD, "tags": []})),
        (200, json.dumps(GOOD)),
    ]
    assert run(endpoint, tmp_path, a="text") == 0
    assert [each["temperature"] for each in endpoint.asked] == [0.0, 0.7, 0.7]
    assert len(lines(tmp_path / "out.jsonl")) == 1


def test_a_text_that_runs_into_its_bound_is_marked_as_cut(endpoint, tmp_path):
    endpoint.answers = [(200, json.dumps({**GOOD, "title": "word " * 20, "summary": "磨" * 360}))]
    assert run(endpoint, tmp_path, a="text") == 0
    (line,) = lines(tmp_path / "out.jsonl")
    assert line["brief"]["title"] == "word " * 18 + "word…"
    assert line["brief"]["summary"] == "磨" * 359 + "…"
    assert Brief.model_validate(line["brief"]).model_dump() == line["brief"]


def test_a_model_that_never_fits_the_schema_ends_the_job(endpoint, tmp_path, capfd):
    endpoint.answers = [(200, "not JSON")]
    assert run(endpoint, tmp_path, a="text") == 1
    assert "error: brief a.txt: 3 answers did not fit the schema" in capfd.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_spent_budget_ends_the_job_and_the_next_start_goes_on(endpoint, tmp_path, monkeypatch):
    endpoint.answers = [(200, json.dumps(GOOD)), (402, "no money")]
    monkeypatch.setenv("MOULIN_GENERATION", "1")
    assert run(endpoint, tmp_path, a="one", b="two") == 1
    endpoint.answers = [(200, json.dumps(GOOD))]
    monkeypatch.setenv("MOULIN_GENERATION", "2")
    assert run(endpoint, tmp_path) == 0
    assert [line["document"] for line in lines(tmp_path / "out.jsonl")] == ["a.txt", "b.txt"]
    notes = lines(tmp_path / "out.jsonl.effects.jsonl")
    assert [(note["event"], note.get("document", ""), note["generation"]) for note in notes] == [
        ("started", "", "1"),
        ("briefed", "a.txt", "1"),
        ("started", "", "2"),
        ("briefed", "b.txt", "2"),
        ("ended", "", "2"),
    ]
