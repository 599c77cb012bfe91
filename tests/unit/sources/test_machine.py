"""Reading texts of /proc, and accelerators through a stand-in for NVML where there is no GPU."""

from types import SimpleNamespace

import pytest

from moulin.domain.errors import SourceUnavailable
from moulin.sources.machine import (
    Gpu,
    cgroup_memory_files,
    parse_cpu_model,
    parse_memory_total,
    read_gpus,
)
from moulin.sources.node_cpu import parse_busy_ticks

STAT = """cpu  30 2 9 1800 14 2 2 100 0 0
cpu0 10 1 4 900 7 1 1 50 0 0
cpu1 20 1 5 900 7 1 1 50 0 0
cpu10 7 0 0 900 7 0 0 0 0 0
intr 1 2 3
"""


def test_memory_is_in_bytes():
    assert parse_memory_total("MemTotal:  24684096 kB\nMemFree: 1 kB\n") == 24684096 * 1024
    with pytest.raises(SourceUnavailable):
        parse_memory_total("MemFree: 1 kB\n")


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nmodel name\t: other\n", "AMD EPYC 7B13"),
        ("processor\t: 0\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
        ("processor\t: 0\n", ""),
    ],
)
def test_the_cpu_model_is_named_where_the_kernel_says_it(text, model):
    assert parse_cpu_model(text) == model


def test_limits_are_looked_for_in_every_parent_group():
    assert cgroup_memory_files("4:cpu,memory:/a/b\n2:cpuset:/x\n0::/s\n") == (
        "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/s/memory.max",
        "/sys/fs/cgroup/memory.max",
    )


@pytest.mark.parametrize(
    ("cpus", "ticks"), [((), 0), ((0,), 17), ((1,), 28), ((0, 1), 45), ((10,), 7)]
)
def test_busy_is_neither_idle_nor_waiting_nor_stolen(cpus, ticks):
    assert parse_busy_ticks(STAT, cpus) == ticks


def test_a_cpu_that_is_not_listed_is_an_error_not_zero():
    with pytest.raises(SourceUnavailable, match="cpu3"):
        parse_busy_ticks(STAT, (0, 3))


class Failed(Exception):
    pass


def fake_nvml(*, fails_at=None, broken=()):
    def init():
        if fails_at == "init":
            raise Failed

    def handle(index):
        if index in broken:
            raise Failed
        return index

    return SimpleNamespace(
        NVMLError=Failed,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetName=lambda device: b"NVIDIA H100",
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(total=80 * 10**9),
        nvmlDeviceGetUUID=lambda device: f"GPU-{device}",
    )


def test_accelerators_are_read_in_order():
    assert read_gpus(fake_nvml()) == tuple(
        Gpu(name="NVIDIA H100", memory_bytes=80 * 10**9, uuid=f"GPU-{index}") for index in (0, 1)
    )


def test_what_cannot_be_read_is_left_out():
    assert read_gpus(fake_nvml(fails_at="init")) == ()
    assert [gpu.uuid for gpu in read_gpus(fake_nvml(broken=(0,)))] == ["GPU-1"]
