"""This machine's own readings."""

import os
import time

from moulin.sources.machine import read_machine
from moulin.sources.node_cpu import read_cpu_busy


def test_facts_of_this_machine():
    facts = read_machine()
    assert facts.cpu_ids == tuple(sorted(os.sched_getaffinity(0)))
    assert facts.memory_bytes >= 10**8
    assert len(facts.boot_id) == 36
    assert 0 < facts.booted_at_ns < time.time_ns()
    assert facts.hostname
    assert facts.cpu_model


def test_busy_time_covers_what_this_process_used():
    cpus = sorted(os.sched_getaffinity(0))
    before, used_before_ns = read_cpu_busy(cpus), time.process_time_ns()
    while time.process_time_ns() - used_before_ns < 200_000_000:
        pass
    after = read_cpu_busy(cpus)
    used_ns = time.process_time_ns() - used_before_ns
    error_ns = 2 * len(cpus) * after.resolution_ns
    assert after.busy_ns - before.busy_ns >= used_ns - error_ns
    assert after.at_monotonic_ns > before.at_monotonic_ns
