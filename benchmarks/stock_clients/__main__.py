"""Drive stock clients against one gateway: settings come on stdin, verdicts go to stdout as JSON.

It imports nothing of Moulin. A feature passes when the client itself took the answer and the answer
was right. It is unsupported when the service says that it does not have it (see `is_refusal`), or
when no model for it is served. Everything else is a failure. A feature that a client does not have
is not listed.
"""

import importlib
import json
import sys
import time
import traceback

from benchmarks.stock_clients.shared import Feature, Settings, Unsupported

REFUSALS = ("unsupported_", "serve this path", "no model for it is served")


def main() -> None:
    """Try every feature of every client that was asked for."""
    asked = json.load(sys.stdin)
    settings = Settings(**asked["settings"])
    result: dict[str, dict[str, list[str]]] = {}
    for name in asked["clients"]:
        module = importlib.import_module(f"benchmarks.stock_clients.with_{name}")
        result[name] = {}
        for feature, call in module.features(settings).items():
            began_s = time.monotonic()
            verdict, said = judge(call)
            spent_s = time.monotonic() - began_s
            print(
                f"{name} {feature}: {verdict} ({spent_s:.1f} s) {said}", file=sys.stderr, flush=True
            )
            result[name][feature] = [verdict, said]
    json.dump(result, sys.stdout)


def judge(call: Feature) -> tuple[str, str]:
    """Run one feature and say how it went."""
    try:
        call()
    except Unsupported as cause:
        return "unsupported", str(cause)
    except Exception as cause:  # noqa: BLE001 - clients raise what they like
        said = f"{type(cause).__name__}: {cause}".replace("\n", " ")[:400]
        if is_refusal(cause):
            return "unsupported", said
        own = [
            frame.lineno
            for frame in traceback.extract_tb(cause.__traceback__)
            if "stock_clients" in frame.filename
        ]
        return "fail", f"{said} (line {own[-1]})"
    return "pass", ""


def is_refusal(cause: BaseException) -> bool:
    """Say whether the service said that it does not have this."""
    if getattr(cause, "status_code", None) in {405, 501}:
        return True
    said = str(cause)
    return any(word in said for word in REFUSALS)


main()
