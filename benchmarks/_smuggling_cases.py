"""Requests a careful parser and a careless one may read differently, drawn from a grammar by seed.

Each case is the bytes of one connection: one to three requests, most of their parts right and a few
of them wrong on purpose, and then a last plain request that asks to close, so that whoever lost the
place is caught with it. Case n of a seed is always the same.
"""

import random
from collections.abc import Sequence
from typing import Final

METHODS: Final = (b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH")
ODD_METHODS: Final = (
    b"get", b"GETT", b"G\0ET", b"TRACE", b"CONNECT", b"PRI", b"M-SEARCH", b"", b"\r\nPOST", b"\nGET",
    b"POST\t", b" POST", b"PURGE", b"PROPFIND", b"P\xffST", b"QUERY",
)  # fmt: skip
TARGETS: Final = (b"/v1/models", b"/v1/chat/completions", b"/v1/models?a=1&b=/../", b"/healthz")
ODD_TARGETS: Final = (
    b"http://a/v1/models", b"HTTP://a:80/v1/models", b"*", b"a:443", b"//a/v1/models", b"/../etc",
    b"/v1/./models", b"/v1/%2e%2e/%2e%2e/x", b"/%00", b"/\0", b"/v1\\models", b"/v1/models#f",
    b"/v1/mod els", b"/\xc3\xa9", b"/\x7f", b"/\t", b"", b"?x", b"v1/models", b"/v1/%zz", b"/v1/%",
    b"/" + b"a" * 9000, b"http://", b"http:///x", b"/..", b"/v1/models?\0", b'/a|b<c>"^`{}',
)  # fmt: skip
ODD_VERSIONS: Final = (
    b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1.10", b"HTTP/01.1", b"http/1.1",
    b"HTTP/1.1 ", b"HTTP/1.1\t", b"HTTP /1.1", b"HTTP/1,1", b"HTTP/1", b"", b"HTTP/1.1\0", b"HTTP/11",
    b"ICE/1.0", b"RTSP/1.0", b"RTSP/1.1", b"ICE/1.1",
)  # fmt: skip
ODD_SPACES: Final = (b"  ", b"\t", b"\x0b", b"\x0c", b"\xa0", b"", b"\r")
LINE_ENDS: Final = (b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n", b"\0\r\n", b"\r\n ", b"\x0b\r\n")
LENGTH_NAMES: Final = (
    b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Content-Length ", b"Content-Length\t",
    b" Content-Length", b"Content_Length", b"Content-Length\0", b"Content-Length\x0b", b"Content\x00-Length",
    b"X: y\rContent-Length", b"X: y\nContent-Length",
)  # fmt: skip
LENGTH_FORMS: Final = (
    b"%d", b"+%d", b"-%d", b"0x%x", b"0%d", b"000000000000000000000%d", b"%d ", b"\t%d", b"%d\x0b", b"%d, %d",
    b"%d,%d", b"%d;", b"%d.0", b"%de0", b'"%d"', b"", b" ", b"%d\0", b"\x0c%d", b"99999999999999999999",
    b"18446744073709551616", b"%d %d", b"1_0", b"\xd9\xa1",
)  # fmt: skip
CODINGS: Final = (
    b"chunked", b"Chunked", b"CHUNKED", b" chunked", b"chunked ", b"\tchunked\t", b"\x0bchunked", b"chunked\x0b",
    b"identity", b"chunked, identity", b"identity, chunked", b"chunked, chunked", b"gzip, chunked", b"xchunked",
    b"chunked;q=1", b'"chunked"', b"chunk", b"", b"chunked,", b",chunked", b"chunked\0", b"\0chunked",
    b"ch\runked", b"chunked\r\n ", b"\r\n chunked", b"trailers",
)  # fmt: skip
CODING_NAMES: Final = (
    b"Transfer-Encoding", b"transfer-encoding", b"TRANSFER-ENCODING", b"Transfer-Encoding ", b"Transfer_Encoding",
    b"Transfer-Encoding\t", b" Transfer-Encoding", b"Transfer-\0Encoding", b"Transfer-Encoding\x0b", b"TE",
    b"X: y\nTransfer-Encoding", b"X: y\rTransfer-Encoding", b"Transfer Encoding", b":Transfer-Encoding",
)  # fmt: skip
COLONS: Final = (
    b":",
    b": ",
    b":\t",
    b" : ",
    b":  ",
    b"::",
    b":\r\n ",
    b"",
    b"=",
    b": \0",
    b":\x0b",
)
HOSTS: Final = (
    b"a", b"a:80", b"127.0.0.1:8701", b"[::1]:80", b"A.example", b"", b" ", b"a b", b"a/b", b"a@b", b"../x",
    b"a:b", b"a:", b"[::1", b"a\0", b"\xc3\xa9", b"a,b", b"a..b", b".", b"a.", b"a\\b", b"http://a", b"a:99999",
    b"a?b", b"a#b", b"[::1]x", b"-", b"_a", b"a%41", b"a\tb", b"[", b"]", b":80", b"[::1]:", b"a:8080:1",
)  # fmt: skip
OTHERS: Final = (
    b"Connection: close", b"Connection: keep-alive", b"Connection: keep-alive, close", b"Connection: upgrade",
    b"Connection: content-length", b"Connection: transfer-encoding", b"Upgrade: h2c", b"Upgrade: websocket",
    b"Expect: 100-continue", b"Expect: 200-ok", b"Trailer: Content-Length", b"TE: trailers", b"Keep-Alive: 1",
    b"Proxy-Connection: close", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"X-Empty:", b":", b": x", b"no colon",
    b"Name With Space: x", b"X\0Y: z", b"X: a\0b", b"X: a\x01b", b"X: a\x7fb", b"X: \xff\xfe", b"X: a\rb", b"X: a\nb",
    b"\xff: x", b"(X): y", b"X@Y: z", b"X\x7f: y", b"Content-Type: application/json", b"Accept: */*",
    b"X: y\r\n folded", b"X: y\r\n\tfolded", b"X: y\r\n ", b" X: leading", b"\tX: leading", b"{X}: y", b'"X": y',
    b"Range: bytes=0-1", b"If-Match: x", b"Cookie: a=b", b"Content-Encoding: gzip", b"Max-Forwards: 0",
    b"Sec-WebSocket-Key: x", b"X-Forwarded-For: 1", b"Authorization: Bearer x", b"HTTP/1.1 200 OK", b"GET / HTTP/1.1",
)  # fmt: skip
CHUNK_SIZES: Final = (
    b"%x", b"%X", b"0%x", b"00000000000000000%x", b"0x%x", b"+%x", b"-%x", b" %x", b"%x ", b"%x\t", b"%x;a",
    b"%x;a=b", b'%x;a="b"', b'%x;a="\r\n"', b"%x;", b"%x; a = b", b"%x;a=\0", b"%x\0", b"%xg", b"%x,", b"%x_", b"",
    b"%x;\n", b"1%016x", b"f%015x", b"%x\x0b", b"%x;\xff", b"%x;a\rb", b"%x a",
)  # fmt: skip
CHUNK_ENDS: Final = (
    b"\n",
    b"\r",
    b"",
    b"\r\n\r\n",
    b"x\r\n",
    b" \r\n",
    b"\r\r\n",
    b"\n\n",
    b"\0\r\n",
)
LAST_CHUNKS: Final = (
    b"0\r\n\r\n", b"0\r\n", b"0\r\n\n", b"0\n\n", b"00\r\n\r\n", b"0;a=b\r\n\r\n", b"0\r\nX-Trailer: y\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n X: y\r\n\r\n", b"-0\r\n\r\n",
    b"0\r\nHost: b\r\n\r\n", b"0\r\nno colon\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\nX: \0\r\n\r\n", b"0x0\r\n\r\n", b"0 \r\n\r\n",
    b"0\r\r\n\r\n", b"0\r\n\r", b"", b"0\r\nX: y\n\r\n", b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\nX: y\r\r\n\r\n",
)  # fmt: skip
NOISE: Final = tuple(
    bytes([byte]) for byte in b"\r\n\t\0 :;,/0159aAfF\x0b\x0c\x7f\x80\xff\"'%+-_.()"
)


def case(seed: int, number: int, key: str) -> tuple[bytes, ...]:
    """Return one connection's bytes as the pieces in which to send them; `key` opens the gateway."""
    dice = random.Random(f"{seed}:{number}")
    grammar = _Grammar(dice, b"Authorization: Bearer %b" % key.encode())
    if dice.random() < 0.15:
        return (*grammar.repeated(), grammar.last())
    data = b"".join(grammar.request() for _ in range(dice.choice((1, 1, 1, 2, 2, 3))))
    data = _mutated(dice, data) + grammar.last()
    if dice.random() < 0.7:
        return (data,)
    cuts = sorted(dice.randrange(len(data)) for _ in range(dice.randint(1, 3)))
    return tuple(data[a:b] for a, b in zip((0, *cuts), (*cuts, len(data)), strict=True))


class _Grammar:
    def __init__(self, dice: random.Random, authorization: bytes) -> None:
        self._dice = dice
        self._authorization = authorization
        # A case with a few oddities says more than one with many, which is refused at the first.
        self._oddity = dice.choice((0.01, 0.03, 0.03, 0.08, 0.2))

    def request(self) -> bytes:
        """Draw one request."""
        framing, body = self._framing()
        lines = [self._line(), self._host(), self._authorization, *framing]
        while self._is_odd() or self._is_odd():
            lines.append(self._pick(OTHERS))
        if self._dice.random() < 0.01:
            lines += [
                b"X%d: %b" % (i, b"a" * self._dice.choice((1, 900)))
                for i in range(self._dice.randint(20, 120))
            ]
        tail = lines[1:]
        self._dice.shuffle(tail)
        return (
            b"".join(line + self._line_end() for line in (lines[0], *tail))
            + self._line_end()
            + body
        )

    def repeated(self) -> tuple[bytes, bytes, bytes]:
        """Draw a plain request, then two with its head: with another body, then somewhat wrong.

        A gateway that knows a head again must find it only where it stands.
        """
        spelling = self._pick((b"Content-Length", b"content-length"))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n%b\r\n%b: %%d\r\nX: y\r\n\r\n" % (
            self._authorization,
            spelling,
        )
        first, second, third = (self._body() for _ in range(3))
        wrong = len(third) + self._dice.choice((0, 0, 1, -len(third), 200))
        return (
            head % len(first) + first,
            head % len(second) + second,
            _mutated(self._dice, head % wrong + third),
        )

    def last(self) -> bytes:
        """Return the request behind all others."""
        return (
            b"GET /v1/last HTTP/1.1\r\nHost: a\r\n%b\r\nConnection: close\r\n\r\n"
            % self._authorization
        )

    def _is_odd(self) -> bool:
        return self._dice.random() < self._oddity

    def _pick(self, choices: Sequence[bytes]) -> bytes:
        return self._dice.choice(choices)

    def _line(self) -> bytes:
        method = self._pick(ODD_METHODS if self._is_odd() else METHODS)
        target = self._pick(ODD_TARGETS if self._is_odd() else TARGETS)
        version = self._pick(ODD_VERSIONS) if self._is_odd() else b"HTTP/1.1"
        first = self._pick(ODD_SPACES) if self._is_odd() else b" "
        second = self._pick(ODD_SPACES) if self._is_odd() else b" "
        return b"".join((method, first, target, second, version))

    def _line_end(self) -> bytes:
        return self._pick(LINE_ENDS) if self._dice.random() < self._oddity / 4 else b"\r\n"

    def _host(self) -> bytes:
        if not self._is_odd():
            return b"Host: a"
        if self._dice.random() < 0.2:
            return self._pick(OTHERS)
        return b"Host: " + self._pick(HOSTS)

    def _framing(self) -> tuple[list[bytes], bytes]:
        """Draw the fields that say how long the body is, and a body that mostly fits them."""
        body = self._body()
        kind = self._dice.choice(("none", "length", "length", "chunked", "chunked", "both"))
        if self._is_odd():
            kind = "both"
        lines = []
        if kind in {"length", "both"}:
            lines.append(self._length(len(body)))
        if kind in {"length", "both"} and self._is_odd():
            lines.append(self._length(len(body) + self._dice.choice((0, 0, 1, -1, 5))))
        if kind in {"chunked", "both"}:
            lines.append(self._coding())
            if self._is_odd():
                lines.append(self._coding())
            body = self._chunked(body)
        if kind == "both" and self._dice.random() < 0.8:
            lines.pop(self._dice.randrange(len(lines)))
        return lines, b"" if kind == "none" and not self._is_odd() else body

    def _body(self) -> bytes:
        smuggled = b"GET /v1/smuggled HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % self._authorization
        return self._dice.choice(
            (
                b"",
                b"x",
                b'{"model":"mock"}',
                smuggled,
                b"0\r\n\r\n",
                b"a" * self._dice.randint(1, 5000),
                smuggled * 2,
            )
        )

    def _length(self, length: int) -> bytes:
        name = self._pick(LENGTH_NAMES if self._is_odd() else LENGTH_NAMES[:1])
        form = self._pick(LENGTH_FORMS if self._is_odd() else LENGTH_FORMS[:1])
        shown = max(0, length + (self._dice.choice((1, -1, 3, 200)) if self._is_odd() else 0))
        count = form.count(b"%d") + form.count(b"%x")
        return name + self._colon() + form % ((shown,) * count)

    def _coding(self) -> bytes:
        name = self._pick(CODING_NAMES if self._is_odd() else CODING_NAMES[:1])
        return name + self._colon() + self._pick(CODINGS if self._is_odd() else CODINGS[:1])

    def _colon(self) -> bytes:
        return self._pick(COLONS if self._is_odd() else COLONS[1:2])

    def _chunked(self, body: bytes) -> bytes:
        pieces = []
        while body:
            size = self._dice.randint(1, max(1, len(body)))
            shown = max(0, size + (self._dice.choice((1, -1, 2)) if self._is_odd() else 0))
            form = self._pick(CHUNK_SIZES if self._is_odd() else CHUNK_SIZES[:1])
            written = form % (shown,) if b"%" in form else form
            end = self._pick(CHUNK_ENDS) if self._is_odd() else b"\r\n"
            pieces.append(written + self._line_end() + body[:size] + end)
            body = body[size:]
        return b"".join(pieces) + self._pick(LAST_CHUNKS if self._is_odd() else LAST_CHUNKS[:1])


def _mutated(dice: random.Random, data: bytes) -> bytes:
    """Change a few bytes in some of the cases, wherever that may be."""
    if dice.random() < 0.75:
        return data
    changed = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(changed) + 1)
        kind = dice.randrange(4)
        if kind == 0:
            changed[place:place] = dice.choice(NOISE)
        elif kind == 1:
            changed[place : place + 1] = dice.choice(NOISE)
        elif kind == 2:
            del changed[place : place + dice.randint(1, 4)]
        else:
            end = changed.find(b"\n", place) + 1
            changed[end:end] = changed[changed.rfind(b"\n", 0, place) + 1 : end]
    return bytes(changed)
