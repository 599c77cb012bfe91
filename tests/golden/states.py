"""What each golden log folds to, as facts that outlive the inside of the scheduler's state.

`python -m tests.golden.states` records the digests that are missing in `states.json`; a recorded one
is never changed by hand: a log that folds to something else is a bug, or needs a decision record.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import orjson

from moulin.domain.event_wire import decode_event
from moulin.scheduler import State, empty_state, fold, live_steps, node_views
from moulin.scheduler.views import workload_view

HERE: Final = Path(__file__).parent
LOGS: Final = HERE / "logs"
RECORDED: Final = HERE / "states.json"


def folded(path: Path) -> State:
    """Return the state after a whole log."""
    state = empty_state()
    for line in path.read_bytes().splitlines():
        fold(state, decode_event(orjson.loads(line)))
    return state


def facts(state: State) -> dict[str, Any]:
    """Return who ended how, what is held where and what still runs."""
    views = [workload_view(state, workload) for workload in state.workloads]
    return {
        "sequence": state.sequence,
        "workloads": {
            view.id: [
                view.state,
                [reason.code.value for reason in view.reasons],
                [view.submitted_at_ns, view.started_at_ns, view.ended_at_ns],
                [view.reserved_neur, view.spent_neur],
                [[unit.unit, unit.generation, unit.state, unit.attempt] for unit in view.units],
                [
                    [task.step, task.node, task.devices, task.phase, task.exit_code]
                    for unit in view.units
                    for task in unit.tasks
                ],
            ]
            for view in views
        },
        "nodes": {
            view.node: [
                view.zone,
                view.cpu_milli_held,
                view.memory_bytes_held,
                view.accelerators_held,
                view.is_reachable,
            ]
            for view in node_views(state)
        },
        "live": list(live_steps(state)),
    }


def digest(state: State) -> str:
    """Return the SHA-256 of a state's facts."""
    text = json.dumps(facts(state), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Record the digests that are missing."""
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for path in sorted(LOGS.glob("*.jsonl")):
        recorded.setdefault(path.stem, digest(folded(path)))
    RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
