"""Sends the bundles of folders to nodes beside the cycle, in pieces, each once for a node.

What a node has is asked at every start, so that a node that lost its disk gets it again. It decides
nothing: until a bundle is there, a start is put off.
"""

import base64
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from moulin.domain.errors import EngineUnavailable, MoulinError
from moulin.domain.ids import NodeId
from moulin.domain.plan import StartStep

PIECE_BYTES: Final = 4 << 20
Ask = Callable[[str, dict[str, Any]], Any]


class Sender:
    """Bundles on their way to the nodes of one pool; `ask` is the agent's verbs."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._under_way: dict[tuple[NodeId, str], MoulinError | None] = {}

    def require(self, step: StartStep) -> None:
        """Return when a step's node has its bundle.

        Raises `EngineUnavailable` while it is on its way, and what stopped the last try, once.
        """
        node, digest = step.nodes[step.rank], step.task.bundle
        if self._send(node, digest, 0, b"", is_last=False) < 0:
            return
        key = (node, digest)
        with self._lock:
            is_begun = key in self._under_way
            failure = self._under_way.get(key)
            if failure is not None:
                del self._under_way[key]
                raise failure
            self._under_way[key] = None
        if not is_begun:
            arguments = (key, Path(step.bundle_path))
            threading.Thread(target=self._send_whole, args=arguments, daemon=True).start()
        raise EngineUnavailable(
            f"start {step.step}: its folder is on its way to node {node}",
            hint="it starts when it is there",
        )

    def _send_whole(self, key: tuple[NodeId, str], path: Path) -> None:
        failure: MoulinError | None = None
        try:
            self._send_pieces(key, path)
        except MoulinError as error:
            failure = error
        except OSError as cause:
            failure = EngineUnavailable(f"read {path}: {cause.strerror}")
        with self._lock:
            if failure is None:
                self._under_way.pop(key, None)
            else:
                self._under_way[key] = failure

    def _send_pieces(self, key: tuple[NodeId, str], path: Path) -> None:
        node, digest = key
        size = path.stat().st_size
        wanted = self._send(node, digest, 0, b"", is_last=False)
        with path.open("rb") as file:
            while 0 <= wanted < size:
                file.seek(wanted)
                piece = file.read(PIECE_BYTES)
                is_last = wanted + len(piece) >= size
                wanted = self._send(node, digest, wanted, piece, is_last=is_last)

    def _send(self, node: NodeId, digest: str, offset: int, data: bytes, *, is_last: bool) -> int:
        request = {
            "node": node,
            "digest": digest,
            "offset": offset,
            "data": base64.b64encode(data).decode(),
            "is_last": is_last,
        }
        return int(self._ask("bundle", request))
