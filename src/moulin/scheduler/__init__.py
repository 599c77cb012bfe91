"""The decider: `fold` the log into a state, `decide` a plan from it, `explain` what waits.

Pure and synchronous: no clock, no dice, no I/O. The live control plane and the twin drive this same
code, so equal logs give bit-identical plans.
"""

from moulin.scheduler.decide import decide, plan_events
from moulin.scheduler.digest import plan_digest
from moulin.scheduler.explain import explain, longest_time_s, possible, trial
from moulin.scheduler.fold import fold
from moulin.scheduler.health import clears, needs_check, symptoms_of
from moulin.scheduler.health import is_news as is_health_news
from moulin.scheduler.leases import (
    Lot,
    held_too_much,
    leased_nodes,
    lots,
    possible_nodes,
)
from moulin.scheduler.policy import SchedulerPolicy
from moulin.scheduler.power import site_draw_w
from moulin.scheduler.preflight import preflight_of
from moulin.scheduler.rows import AttemptRow, Serving, TaskRow, UnitRow, WorkloadRow
from moulin.scheduler.scaling import growing, is_load_news, next_due_ns
from moulin.scheduler.state import State, empty_state, live_steps
from moulin.scheduler.views import node_views, start_step, unit_views, workload_view
from moulin.scheduler.walltime import expected_start, moves_end
from moulin.scheduler.wanted import wanted_next
from moulin.scheduler.wellbeing import quarantined

__all__ = [
    "AttemptRow",
    "Lot",
    "SchedulerPolicy",
    "Serving",
    "State",
    "TaskRow",
    "UnitRow",
    "WorkloadRow",
    "clears",
    "decide",
    "empty_state",
    "expected_start",
    "explain",
    "fold",
    "growing",
    "held_too_much",
    "is_health_news",
    "is_load_news",
    "leased_nodes",
    "live_steps",
    "longest_time_s",
    "lots",
    "moves_end",
    "needs_check",
    "next_due_ns",
    "node_views",
    "plan_digest",
    "plan_events",
    "possible",
    "possible_nodes",
    "preflight_of",
    "quarantined",
    "site_draw_w",
    "start_step",
    "symptoms_of",
    "trial",
    "unit_views",
    "wanted_next",
    "workload_view",
]
