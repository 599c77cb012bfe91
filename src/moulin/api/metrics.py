"""Counters of the API in the text format of Prometheus; hand-written, as the format is six lines.

Labels are routes and codes, never tenants: the page needs no key.
"""

from collections import Counter
from typing import Final

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What the API counts since it started."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds_ns: Counter[str] = Counter()
        self._rejections: Counter[str] = Counter()
        self.in_flight = 0
        self.streams = 0

    def count(self, method: str, route: str, status: int, took_ns: int) -> None:
        """Count one answered request; `status` 0 means that the connection ended first."""
        self._requests[(_method(method), route, status)] += 1
        self._seconds_ns[route] += took_ns

    def reject(self, cause: str) -> None:
        """Count one credential that was not accepted."""
        self._rejections[cause] += 1

    def text(self) -> str:
        """Return the page, its lines in a stable order."""
        lines = [
            *_head("moulin_build_info", "gauge", "The running version."),
            f'moulin_build_info{{version="{self._version}"}} 1',
            *_head("moulin_api_requests_total", "counter", "Requests answered."),
        ]
        for (method, route, status), count in sorted(self._requests.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            lines.append(f"moulin_api_requests_total{{{labels}}} {count}")
        lines += _head("moulin_api_request_seconds_sum", "counter", "Time spent on requests.")
        for route, took_ns in sorted(self._seconds_ns.items()):
            lines.append(f'moulin_api_request_seconds_sum{{route="{route}"}} {took_ns / 1e9:.6f}')
        lines += _head("moulin_api_rejected_keys_total", "counter", "Credentials not accepted.")
        for cause, count in sorted(self._rejections.items()):
            lines.append(f'moulin_api_rejected_keys_total{{cause="{cause}"}} {count}')
        lines += _head("moulin_api_requests_in_flight", "gauge", "Requests being answered.")
        lines.append(f"moulin_api_requests_in_flight {self.in_flight}")
        lines += _head("moulin_api_streams", "gauge", "Event streams open.")
        lines.append(f"moulin_api_streams {self.streams}")
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _method(method: str) -> str:
    """Keep labels few: a method that no route has is one label."""
    return method if method in {"GET", "POST", "DELETE", "HEAD", "OPTIONS"} else "other"
