"""Into a running task over one connection: a command with pipes or a terminal, or a port of the task.

A session is on record before it begins. What is typed and answered is passed on, never kept. The
connection is a WebSocket: the first message says what is wanted, then binary messages begin with a
byte for their pipe (0 input, 1 output, 2 errors) and text ones are JSON: `resize`, `eof` from the
client, `session`, `exit` and `error` to it.
"""

import asyncio
import contextlib
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect

from moulin.api.access import allowed
from moulin.api.exchange import in_thread
from moulin.api.hosting import Hosted
from moulin.api.messages import choose_language
from moulin.api.parameters import WorkloadPath
from moulin.api.problems import document, problem_response
from moulin.api.state import ApiState, state_of
from moulin.api.workloads import owned
from moulin.controlplane.commands import CloseSession, OpenSession
from moulin.domain.errors import InternalError, InvalidRequest, MoulinError
from moulin.domain.ids import PREFIX_BY_KIND, WorkloadId, make_id
from moulin.domain.principal import Principal
from moulin.domain.session import ERRORS, INPUT, OUTPUT, EntryWanted, SessionTicket
from moulin.domain.session_events import SessionEnd, SessionPurpose
from moulin.domain.views import WorkloadView
from moulin.identity import Action

router = APIRouter(tags=["workloads"])
WORDS_MAX: Final = 4096
COMMAND_BYTES_MAX: Final = 131_072
WORD_SHOWN_MAX: Final = 100
WANTED_WAIT_S: Final = 20.0
LAST_WORDS_S: Final = 3.0
CLOSED_WELL: Final = 1000
CLOSED_BY_ERROR: Final = 1008
Count = Annotated[int, Query(ge=0, le=10**6)]


@router.websocket("/workloads/{workload}/enter")
async def enter_workload(
    socket: WebSocket, workload: WorkloadPath, *, unit: Count = 0, rank: Count = 0
) -> None:
    """Go into a running task, and stay until the program ends, the client leaves or time is up."""
    state = state_of(socket)
    try:
        principal = allowed(socket, Action.WORKLOAD_ENTER)
        view = await owned(state, principal, Action.WORKLOAD_ENTER, workload)
        state.doors.enter(view.project)
    except MoulinError as error:
        language = choose_language(socket.headers.get("accept-language", ""))
        response = problem_response(error, language=language, instance=socket.url.path)
        await socket.send_denial_response(response)
        return
    try:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await _serve(socket, state, principal, view, (unit, rank))
    finally:
        state.doors.leave(view.project)


async def _serve(
    socket: WebSocket,
    state: ApiState,
    principal: Principal,
    view: WorkloadView,
    at: tuple[int, int],
) -> None:
    try:
        said = await _first_message(socket)
        wanted = read_wanted(said)
        ticket = await state.bridge.ask(_opening(state, principal, view, at, wanted), SessionTicket)
    except MoulinError as error:
        await _tell_error(socket, error)
        return
    end, status = SessionEnd.FAILED, None
    try:
        end, status = await _inside(socket, state, ticket, wanted, said)
    except MoulinError as error:
        await _tell_error(socket, error)
    finally:
        closing = CloseSession(
            principal=principal,
            ticket=ticket,
            workload=WorkloadId(view.id),
            end=end,
            exit_code=status,
        )
        with contextlib.suppress(MoulinError):  # it is stopping: the session ends all the same
            await state.bridge.ask(closing, SessionTicket)
    if status is not None:
        await _tell(socket, {"exit": status})
    with contextlib.suppress(RuntimeError):
        await socket.close(CLOSED_WELL)


def read_wanted(said: dict[str, Any]) -> EntryWanted:
    """Return what a first message asks for; raises `InvalidRequest`."""
    command, terminal, port = said.get("command", []), said.get("terminal", ""), said.get("port", 0)
    is_command = isinstance(command, list) and len(command) <= WORDS_MAX
    if not is_command or not all(isinstance(word, str) and "\0" not in word for word in command):
        raise _unreadable("`command` is a list of words")
    if sum(len(word.encode(errors="replace")) + 1 for word in command) > COMMAND_BYTES_MAX:
        raise _unreadable(f"`command` has at most {COMMAND_BYTES_MAX} bytes")
    if (
        not isinstance(terminal, str)
        or len(terminal) > WORD_SHOWN_MAX
        or not terminal.isprintable()
    ):
        raise _unreadable("`terminal` is its name, as in TERM")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65_535:
        raise _unreadable("`port` is a number from 1 to 65535")
    if not (command or terminal or port) or (port and (command or terminal)):
        raise _unreadable("say `command`, `terminal` or both, or `port`")
    return EntryWanted(command=tuple(command), terminal=terminal, port=port)


def _opening(
    state: ApiState,
    principal: Principal,
    view: WorkloadView,
    at: tuple[int, int],
    wanted: EntryWanted,
) -> OpenSession:
    services = state.services
    word = str(wanted.port) if wanted.port else (wanted.command or ("",))[0]
    return OpenSession(
        principal=principal,
        session=make_id(PREFIX_BY_KIND["session"], services.clock.now_ns(), services.ids.entropy()),
        workload=WorkloadId(view.id),
        unit=at[0],
        rank=at[1],
        purpose=SessionPurpose.FORWARD if wanted.port else SessionPurpose.EXEC,
        word=word[:WORD_SHOWN_MAX],
    )


async def _inside(
    socket: WebSocket,
    state: ApiState,
    ticket: SessionTicket,
    wanted: EntryWanted,
    said: dict[str, Any],
) -> tuple[SessionEnd, int | None]:
    """Run the program until it ends, or nobody is there, or time is up; return which, and its status."""
    entry = await in_thread(state.services.enter, ticket, wanted)
    try:
        hosted = await in_thread(lambda: Hosted(entry, is_terminal=bool(wanted.terminal)))
    except OSError as cause:
        raise InternalError(f"enter {ticket.step}: {cause.strerror}") from cause
    exited = hosted.exited()
    reading = asyncio.create_task(_take(socket, hosted))
    writing = [
        asyncio.create_task(_give(socket, hosted, index, pipe))
        for index, pipe in enumerate((OUTPUT, ERRORS)[: len(hosted.outputs)])
    ]
    try:
        _resize(hosted, said)
        await _tell(socket, {"session": ticket.session})
        limit_s = state.services.limits.session_s_max
        either: list[asyncio.Future[Any]] = [exited, reading]
        await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            await asyncio.wait(writing, timeout=LAST_WORDS_S)
            return SessionEnd.EXITED, exited.result()
        return (SessionEnd.LEFT if reading.done() else SessionEnd.TOO_LONG), None
    finally:
        for task in (reading, *writing):
            task.cancel()
        await asyncio.gather(reading, *writing, return_exceptions=True)
        await hosted.end(exited)


async def _take(socket: WebSocket, hosted: Hosted) -> None:
    """Pass on what the client says, until it has left."""
    while True:
        message = await socket.receive()
        if message["type"] != "websocket.receive":
            return
        data = message.get("bytes")
        if data is not None:
            if data[:1] == INPUT:
                await hosted.write(data[1:])
            continue
        said = _object(message.get("text") or "")
        if said.get("eof") is True:
            hosted.end_input()
        _resize(hosted, said)


async def _give(socket: WebSocket, hosted: Hosted, index: int, pipe: bytes) -> None:
    """Pass on what the program says, until it has said all."""
    async for data in hosted.output(index):
        await socket.send_bytes(pipe + data)


def _resize(hosted: Hosted, said: dict[str, Any]) -> None:
    size = said.get("resize")
    if isinstance(size, list) and len(size) == 2 and all(type(each) is int for each in size):
        rows, columns = (min(max(each, 1), 10_000) for each in size)
        hosted.resize(rows, columns)


async def _first_message(socket: WebSocket) -> dict[str, Any]:
    try:
        async with asyncio.timeout(WANTED_WAIT_S):
            return _object(await socket.receive_text())
    except TimeoutError:
        raise _unreadable(f"no first message came within {WANTED_WAIT_S:g} s") from None
    except KeyError:
        raise _unreadable("the first message is JSON text") from None


def _object(text: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


async def _tell(socket: WebSocket, said: dict[str, Any]) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it has left
        await socket.send_text(orjson.dumps(said).decode())


async def _tell_error(socket: WebSocket, error: MoulinError) -> None:
    language = choose_language(socket.headers.get("accept-language", ""))
    told = document(error, status=error.http_status, language=language, instance=socket.url.path)
    await _tell(socket, {"error": orjson.loads(orjson.dumps(told, default=str))})
    with contextlib.suppress(RuntimeError):
        await socket.close(CLOSED_BY_ERROR)


def _unreadable(words: str) -> InvalidRequest:
    return InvalidRequest(f"enter a task: {words}", hint="see docs/guides/inside-a-task.md")
