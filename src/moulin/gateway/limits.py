"""Every bound the gateway enforces, in one place with its number.

It decides nothing; the parts that enforce a bound name it here in their refusals.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one gateway process.

    Clients: at most `connections_max` connections; a request head of `head_bytes_max` and
    `headers_max` fields within `head_timeout_s`; a body of `body_bytes_max`, with audio of
    `audio_bytes_max`, whose bytes never pause longer than `body_idle_s`; all bodies together
    `buffered_bytes_max`; an idle connection is closed after `keep_alive_s`; an answer that is not read fast enough waits in `write_buffer_bytes`
    and then at the replica, and a client that leaves it there for `write_stall_s` is cut;
    `pipelined_max` requests may be sent ahead. A refused client has `linger_s` to read why; of what
    it still sends, `linger_bytes_max` are thrown away before the connection is reset.

    Replicas: `connect_timeout_s` to connect, `first_byte_timeout_s` until an answer begins,
    `stream_idle_s` between its bytes, `answer_bytes_max` for an answer that is not a stream.
    When every slot is taken, `queue_max` requests per model wait up to `queue_wait_s`; the next is
    told to come back later. When a replica is avoided is `moulin.routing.breaker`'s.

    Money: a request waits up to `escrow_wait_s` for escrow; a project idle for `escrow_idle_s`
    gives its free escrow back.

    With `tells_figures` every usage says what it cost, not only where a request asks for it.

    `grace_s` is what running requests get at shutdown, `sync_wait_s` how long one long poll lasts.
    """

    connections_max: int = 4096
    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    head_timeout_s: float = 10.0
    body_bytes_max: int = 8 * 1024 * 1024
    audio_bytes_max: int = 25 * 1024 * 1024
    upload_bytes_max: int = 512_000_000
    body_idle_s: float = 30.0
    buffered_bytes_max: int = 256 * 1024 * 1024
    keep_alive_s: float = 75.0
    write_stall_s: float = 60.0
    write_buffer_bytes: int = 64 * 1024
    pipelined_max: int = 16
    linger_s: float = 2.0
    linger_bytes_max: int = 16 * 1024 * 1024
    connect_timeout_s: float = 2.0
    first_byte_timeout_s: float = 600.0
    stream_idle_s: float = 120.0
    answer_bytes_max: int = 64 * 1024 * 1024
    idle_connections_max: int = 64
    queue_max: int = 256
    queue_wait_s: float = 60.0
    escrow_wait_s: float = 3.0
    escrow_idle_s: float = 5.0
    grace_s: float = 10.0
    sync_wait_s: int = 10
    sweep_s: float = 1.0
    tells_figures: bool = False
