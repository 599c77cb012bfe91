"""The operator's choices a decision depends on, as one value; never anything read from the world."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerPolicy:
    """What `decide` is told besides the state and the time.

    `projects_exhausted` are projects whose budget is spent: their work is stopped, and what still
    waits is ended. `workloads_exhausted` are single ones that nothing is left for, and
    `endpoints_frozen` those whose project cannot pay one more replica. `losses_max` is how often an
    attempt that its engine proved gone is tried again without counting as the program's failure. `reservations_max` bounds how many blocked gangs
    keep nodes free for themselves; `places_max` bounds one plan (the rest waits for the next
    cycle, in the same order). `staleness_s` is how long a gateway that hears nothing serves on. A
    symptom that lasts `suspect_s` puts a node into quarantine, and one that shows none for `calm_s`
    is well again; out of quarantine it takes twice as long each time, up to `calm_max_s`. What was preempted before is not preempted again within `preempt_calm_s` of its
    next start, twice as long each time, up to `preempt_calm_max_s`.
    """

    projects_exhausted: tuple[str, ...] = ()
    workloads_exhausted: tuple[str, ...] = ()
    endpoints_frozen: tuple[str, ...] = ()
    losses_max: int = 3
    job_backoff_max_s: int = 3600
    endpoint_backoff_max_s: int = 60
    reservations_max: int = 16
    places_max: int = 10_000
    staleness_s: int = 60
    suspect_s: int = 60
    calm_s: int = 300
    calm_max_s: int = 86_400
    preempt_calm_s: int = 600
    preempt_calm_max_s: int = 86_400
