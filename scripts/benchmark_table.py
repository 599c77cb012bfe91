"""The table of measured figures in README.md, from benchmarks/results: what was measured, not hoped.

Each row is one figure with its goal and the command that gives it; a benchmark without a kept
result says so.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START: Final = "<!-- benchmarks: written by `make docs` from benchmarks/results; do not edit -->"
END: Final = "<!-- end of benchmarks -->"
Result = Mapping[str, Any]

GATEWAY_PEERS: Final = (
    ("nginx", "nginx"),
    ("envoy", "Envoy"),
    ("vllm_router", "vllm-router"),
    ("litellm", "LiteLLM"),
)

# benchmark, what was measured, the figure in words, the goal
ROWS: Final[tuple[tuple[str, str, Callable[[Result], str], str], ...]] = (
    (
        "control_path",
        "jobs submitted by HTTP, durable, decided and started (simulated engine, 1,250 nodes)",
        lambda r: (
            f"{_number(r['submit_to_start_per_s'])} jobs/s; at 500/s p99 "
            f"{_number(r['p99_ms_at_500_per_s'])} ms"
        ),
        "1,000 jobs/s, 50 ms",
    ),
    (
        "gateway",
        "gateway CPU for one request with keys, budgets and metering, beside nginx and Envoy",
        lambda r: (
            f"{_number(r['cpu_us']['moulin'])} µs; "
            + ", ".join(
                f"{words} {_number(r['cpu_us'][name])}"
                for name, words in GATEWAY_PEERS
                if r["cpu_us"].get(name)
            )
        ),
        "below Envoy",
    ),
    (
        "streams",
        (
            "gateway: CPU of a stream of 100 events beside nginx; tokens/s at 1, 4, 16 real streams "
            "beside the replica asked directly; memory of 1,000 idle streams"
        ),
        lambda r: (
            f"{_number(r['cpu_ratio_nginx_sse'])} x nginx; "
            + ", ".join(_number(at["ratio"]) for at in r["tokens_ratio_engine"].values())
            + f"; {_number(r['idle_1000_streams_rss_mb'])} MB"
        ),
        "2 x nginx, no loss, 60 MB",
    ),
    (
        "soak",
        "gateway: growth of memory over JSON requests and streams without a pause",
        lambda r: f"{_number(r['rss_growth_mb'])} MB over {_number(r['requests'])} requests",
        "5 MB over 1,000,000",
    ),
    (
        "decide",
        "decider: gangs decided on 12,500 nodes, one core",
        lambda r: (
            f"{_number(r['12500']['gangs_decided_per_s'])} gangs/s, "
            f"{_number(r['12500']['single_places_per_s'])} single placements/s"
        ),
        "200,000 gangs/s",
    ),
    (
        "startup",
        "`moulin up` ready; memory of control plane, gateway, one shim",
        lambda r: (
            f"{_number(r['up_ready_s'])} s; {_number(r['control_rss_mb'])}, "
            f"{_number(r['gateway_rss_mb'])}, {_number(r['shim_rss_mb'])} MB"
        ),
        "5 s; 150 MB, -, 10 MB",
    ),
    (
        "crash",
        "SIGKILL of control plane, gateway, shims and replicas under load, judged from outside",
        lambda r: (
            f"{r['kills']} kills, {r['tasks']} tasks: {r['lost']} lost, {r['duplicated']} doubled, "
            f"{r['orphaned']} orphaned, {r['unbalanced']} unbalanced"
        ),
        "none",
    ),
    (
        "crash --engine slurm",
        "the same with the jobs on a real Slurm, whose slurmctld and slurmd are killed too",
        lambda r: (
            f"{r['kills']} kills, {r['tasks']} tasks: {r['lost']} lost, {r['duplicated']} doubled, "
            f"{r['orphaned']} orphaned, {r['unbalanced']} unbalanced"
        ),
        "none",
    ),
    (
        "engines",
        "from asking until a task runs, beside a fork, `sbatch` and the Ray job client (medians)",
        lambda r: (
            ", ".join(
                f"{name} {_number(r[name]['overhead_over_bare'])} x "
                f"({_number(r[name]['submit_to_running_p50_s'])} s)"
                for name in ("local", "slurm", "ray")
                if "overhead_over_bare" in r.get(name, {})
            )
            + f"; array of 1,000 {_number(r['array_1000_speedup_over_sbatch'])} x sooner"
        ),
        "Slurm 1.3 x; 20 x",
    ),
    (
        "node_failure",
        "nodes that break with evidence, on three engines, and nodes that are merely silent",
        lambda r: (
            f"{r['failures']} failures noticed in {_seconds(r['noticed_s_max'])}, gang runs again in "
            f"{_seconds(r['restarted_s_max'])}; {r['silences']} silences: "
            f"{r['wrongly_restarted']} wrong restarts"
        ),
        "15 s, 60 s, 0",
    ),
    (
        "conformance",
        "vLLM on a CPU: its suite, and a checkpoint through a whole Moulin, killed and stopped",
        lambda r: (
            f"{r['packages'][0]}: {r['passed']} tests passed, {r['failed']} failed, "
            f"{r['skipped']} skipped"
        ),
        "all pass",
    ),
    (
        "budget_burst",
        "streams at once on two gateways, one killed, beyond what a budget fits",
        lambda r: (
            f"{r['streams']} streams, {r['admitted']} admitted of {r['fits']} that fit, "
            f"overshoot {_number(r['overshoot_eur'])} €"
        ),
        "0 €",
    ),
    (
        "failover",
        "replicas killed and hung under load, requests bound to countries",
        lambda r: (
            f"{r['killed_replicas']} killed, {_number(r['requests'])} requests: "
            f"{r['failed_before_first_byte']} failed before the first byte, "
            f"{r['wrong_zone']} in a wrong zone"
        ),
        "0, 0",
    ),
    (
        "rollout",
        "streams across a rolling update and back, real model",
        lambda r: f"{r['streams']} streams, {r['dropped']} dropped",
        "0 dropped",
    ),
    (
        "slurm_rollover",
        "streams while replicas on Slurm reach their walltime, real model",
        lambda r: (
            f"{r['rollovers']} rollovers, {r['streams']} streams, {r['cut']} cut, "
            f"at most {_number(r['without_replica_s_max'])} s without a replica"
        ),
        "0 cut",
    ),
    (
        "scale_to_zero",
        "requests that found no replica and were held, real model",
        lambda r: (
            f"{r['cold_requests']} held, slowest {_number(r['cold_request_s_max'])} s, "
            f"{r['failed']} failed"
        ),
        "0 failed",
    ),
    (
        "retention",
        "a marked prompt, searched in every file, column, log and core dump after crashes",
        lambda r: f"{_number(r['requests'])} requests, found {r['found']} times",
        "0 times",
    ),
    (
        "smuggling",
        "request heads and framings made to divide two servers, read by the gateway and by nginx",
        lambda r: f"{_number(r['cases'])} cases, {r['divergences']} divergences",
        "0",
    ),
    (
        "clients",
        (
            "features of the stock `openai`, `mistralai`, `huggingface_hub`, `litellm` and "
            "`langchain-openai` packages, each called for real"
        ),
        lambda r: ", ".join(f"{name} {_tally(found)}" for name, found in sorted(r.items())),
        "none fails",
    ),
)


def table() -> str:
    """Return the block of README.md, markers included."""
    lines = ["| what | measured | goal | `python -m benchmarks …` | day |", "|---|---|---|---|---|"]
    lines += [_row(name, what, words, goal) for name, what, words, goal in ROWS]
    machines = sorted({_machine(record) for name, *_ in ROWS if (record := _record(name))})
    note = f"\n\nMeasured on {'; '.join(machines)}, shared with other work." if machines else ""
    return "\n".join([START, *lines]) + note + f"\n{END}"


def with_table(readme: str) -> str:
    """Return the text of README.md with its block made anew; raises `ValueError` without one."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError("README.md has no block for the benchmarks")
    return f"{before}{table()}{after}"


def _row(name: str, what: str, words: Callable[[Result], str], goal: str) -> str:
    record = _record(name)
    measured = words(record["result"]) if record else "not kept yet"
    day = str(record["date"])[:10] if record else ""
    return f"| {what} | {measured} | {goal} | `{name}` | {day} |"


def _record(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name.replace(' --engine ', '_')}.json"
    found: dict[str, Any] | None = json.loads(path.read_text("utf-8")) if path.exists() else None
    return found


def _machine(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    return f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB"


def _tally(found: Mapping[str, str]) -> str:
    """Return how many features passed, of how many; and those that failed or are not there.

    >>> _tally({"chat": "pass", "images": "unsupported"})
    '1 of 2 (1 unsupported)'
    """
    counts = Counter(found.values())
    rest = ", ".join(f"{counts[word]} {word}" for word in sorted(counts) if word != "pass")
    return f"{counts['pass']} of {len(found)}" + (f" ({rest})" if rest else "")


def _seconds(value: float | None) -> str:
    """Return seconds in words, also those that never ended.

    >>> _seconds(3.2), _seconds(None)
    ('3.2 s', 'never')
    """
    return "never" if value is None else f"{_number(value)} s"


def _number(value: float) -> str:
    """Return three significant digits, with separators.

    >>> _number(64877), _number(3.14159)
    ('64,900', '3.14')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
