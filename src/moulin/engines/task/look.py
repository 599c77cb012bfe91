"""Reads how well one machine is, for whoever has no daemon on it: accelerators, memory, disk, clock.

    python -I -S -E look.py FOLDER STEP_DIRECTORY PID

With the one word `once` it prints a reading. Else it
runs beside a task for as long as process PID lives and keeps one file `FOLDER/NODE/STEP` that says
what it last read. Like the shim it is a bare file that imports nothing of Moulin, and runs on Python 3.8.
It decides nothing about what a reading means, and ends nothing.

NVML is asked through its C interface (nvml.h, 12). XIDs are told once, as events, so they are counted
here from the start, and heard at once: the program that meets one often ends of it. What then broke is
left behind as a last word. A device that was there and does not answer is said to be lost; what cannot
be read is left out, never said to be well.
"""

from __future__ import annotations

import _thread
import ctypes
import hashlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Dict, Mapping  # noqa: UP035 - Python 3.8 on nodes

LIBRARY = "libnvidia-ml.so.1"
EDAC = "/sys/devices/system/edac/mc"
PERIOD_S = 3.0
# A reading that says nothing new is written again after this, so that it is known to be fresh.
AGAIN_S = 20.0
# A disk so small says nothing when it is nearly full.
DISK_BYTES_MIN = 4 << 30
DEVICES_MAX = 64
LINKS_MAX = 18
EVENTS_MAX = 1000
XID_EVENTS = 8
# How long the driver is waited for at once, and how often at most it wakes the reader.
HEARING_MS = 10_000
WAKING_S = 0.5
UNCORRECTED = 1
VOLATILE = 0
# Of the reasons for lower clocks: heat as hardware and software see it, and the brake line.
HEAT = 0x40 | 0x20
BRAKE = 0x80
# What a device does not get over by itself.
LASTING = (
    "index",
    "uuid",
    "xids_since_ns",
    "xids",
    "ecc_uncorrected",
    "is_remap_failed",
    "is_lost",
)
Reading = Dict[str, Any]  # noqa: UP006


class Told(ctypes.Structure):
    """An event as the driver tells it."""

    _fields_ = (
        ("device", ctypes.c_void_p),
        ("type", ctypes.c_ulonglong),
        ("data", ctypes.c_ulonglong),
        ("gpu", ctypes.c_uint),
        ("compute", ctypes.c_uint),
    )


class Nvml:
    """The accelerators of this machine, by the index of the driver."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Open the driver's library; without one there is nothing to read."""
        self.since_ns = time.time_ns()
        self.uuids: dict[int, str] = {}
        self.xids: dict[str, dict[str, int]] = {}
        self.links_up: dict[str, int] = {}
        self.events: Any = None
        self.heard: list[tuple[Any, int]] = []
        self.is_hearing = False
        self.nvml: Any = None
        try:
            self.nvml = ctypes.CDLL(library)
            if self.nvml.nvmlInit_v2() != 0:
                self.nvml = None
        except (OSError, AttributeError):
            self.nvml = None

    def read(self, wanted: list[int] | None = None) -> list[Reading] | None:
        """Return a list of devices, only those of the indices `wanted`; None when none can be asked."""
        count = ctypes.c_uint()
        if self.nvml is None or self.nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        indices = range(min(count.value, DEVICES_MAX)) if wanted is None else wanted
        handles = {index: self.handle(index) for index in indices}
        self.listen([handle for handle in handles.values() if handle is not None])
        self.count_xids()
        found = [self.device(index, handles[index]) for index in indices]
        return [device for device in found if device is not None]

    def handle(self, index: int) -> Any:
        """Return a device's handle once it answers; None when it does not."""
        handle = ctypes.c_void_p()
        if self.nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            return None
        uuid = self.uuid_of(handle)
        if uuid:
            self.uuids[index] = uuid
        return handle if uuid else None

    def uuid_of(self, handle: Any) -> str:
        """Return a device's UUID, empty when it does not answer."""
        text = ctypes.create_string_buffer(96)
        failed = self.nvml.nvmlDeviceGetUUID(handle, text, 96)
        return "" if failed else text.value.decode("ascii", "replace")

    def listen(self, handles: list[Any]) -> None:
        """Ask once to be told of XIDs."""
        if self.events is not None:
            return
        self.events = ctypes.c_void_p()
        if self.nvml.nvmlEventSetCreate(ctypes.byref(self.events)) == 0:
            for handle in handles:
                self.nvml.nvmlDeviceRegisterEvents(
                    handle, ctypes.c_ulonglong(XID_EVENTS), self.events
                )

    def count_xids(self) -> None:
        """Take what was told since the last look."""
        while self.heard:
            self.count_xid(*self.heard.pop(0))
        told = Told()
        for _ in range(EVENTS_MAX):
            if self.nvml.nvmlEventSetWait_v2(self.events, ctypes.byref(told), 0) != 0:
                return
            self.count_xid(told.device, told.data)

    def count_xid(self, device: Any, xid: int) -> None:
        """Count one; a device that has fallen off the bus tells its last XID and no name."""
        uuid = self.uuid_of(ctypes.c_void_p(device))
        for name in [uuid] if uuid else self.silent():
            counts = self.xids.setdefault(name, {})
            counts[str(xid)] = counts.get(str(xid), 0) + 1

    def begin_to_hear(self, wake: int) -> None:
        """Hear XIDs from now on as they are told, and write to `wake` when one was."""
        if self.events is not None and not self.is_hearing:
            self.is_hearing = True
            _thread.start_new_thread(self.hear, (wake,))

    def hear(self, wake: int) -> None:
        """Wait for XIDs; where the driver does not wait, they are taken with each reading alone."""
        told = Told()
        while True:
            begun_s = time.monotonic()
            wait = self.nvml.nvmlEventSetWait_v2
            if wait(self.events, ctypes.byref(told), HEARING_MS) == 0:
                self.heard.append((told.device, told.data))
                os.write(wake, b"x")
                time.sleep(WAKING_S)
            elif time.monotonic() - begun_s < HEARING_MS / 2000:
                return

    def silent(self) -> list[str]:
        """Return the devices that were there and do not answer."""
        return [uuid for index, uuid in self.uuids.items() if self.handle(index) is None]

    def device(self, index: int, handle: Any) -> Reading | None:
        """Return one device's reading; None for one that was never there."""
        uuid = self.uuids.get(index, "")
        if handle is None:
            return {"index": index, "uuid": uuid, "is_lost": True} if uuid else None
        errors, reasons = ctypes.c_ulonglong(), ctypes.c_ulonglong()
        rows = [ctypes.c_uint() for _ in range(4)]
        nvml = self.nvml
        found: Reading = {"index": index, "uuid": uuid, "xids_since_ns": self.since_ns}
        found["xids"] = dict(self.xids.get(uuid, {}))
        if (
            nvml.nvmlDeviceGetTotalEccErrors(handle, UNCORRECTED, VOLATILE, ctypes.byref(errors))
            == 0
        ):
            found["ecc_uncorrected"] = errors.value
        if nvml.nvmlDeviceGetRemappedRows(handle, *[ctypes.byref(row) for row in rows]) == 0:
            found["is_remap_pending"] = bool(rows[2].value)
            found["is_remap_failed"] = bool(rows[3].value)
        if self.clock_reasons(handle, reasons) == 0:
            found["is_hot"] = bool(reasons.value & HEAT)
            found["is_braked"] = bool(reasons.value & BRAKE)
        found["links_down"] = self.links_down(uuid, handle)
        return found

    def clock_reasons(self, handle: Any, answer: Any) -> int:
        """Ask why clocks are lowered; drivers before 535 know it by its older name."""
        for name in (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        ):
            try:
                return int(getattr(self.nvml, name)(handle, ctypes.byref(answer)))
            except AttributeError:
                continue
        return 1

    def links_down(self, uuid: str, handle: Any) -> int:
        """Return how many links are down that were up once; -1 where there are none to ask for."""
        state = ctypes.c_uint()
        ask = self.nvml.nvmlDeviceGetNvLinkState
        states = [
            bool(state.value)
            for link in range(LINKS_MAX)
            if ask(handle, link, ctypes.byref(state)) == 0
        ]
        if not states:
            return -1
        self.links_up[uuid] = max(self.links_up.get(uuid, 0), sum(states))
        return self.links_up[uuid] - sum(states)


def machine(directory: str, nvml: Nvml | None, wanted: list[int] | None = None) -> Reading:
    """Return one reading of this machine; `directory` is on a disk of its own that work needs."""
    return {
        "at_ns": time.time_ns(),
        "devices": nvml.read(wanted) if nvml is not None else None,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "memory_errors": memory_errors(EDAC),
        "disk_free_bytes": disk_free_bytes(directory),
    }


def memory_errors(folder: str) -> int:
    """Return the uncorrected errors of all memory controllers, -1 where none is watched."""
    counts = []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        try:
            with open(f"{folder}/{name}/ue_count", encoding="ascii") as file:
                counts.append(int(file.read()))
        except (OSError, ValueError):
            continue
    return sum(counts) if counts else -1


def disk_free_bytes(directory: str) -> int:
    """Return what is free there, -1 when that cannot be known or says nothing."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return -1
    is_small = found.f_blocks * found.f_frsize < DISK_BYTES_MIN
    return -1 if is_small else found.f_bavail * found.f_frsize


def visible(environment: Mapping[str, str], plan: list[int]) -> list[int] | None:
    """Return the indices of the devices a task uses as the driver counts them; None: any.

    As for the task itself, what the launcher says comes before the plan; who was given devices that
    nobody names sees all that there are.

    >>> visible({"CUDA_VISIBLE_DEVICES": "2,3"}, [0, 1]), visible({}, [0, 1])
    ([2, 3], [0, 1])
    """
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return plan if plan or not environment.get("SLURM_GPUS_ON_NODE") else None
    named = environment["CUDA_VISIBLE_DEVICES"]
    parts = [part for part in named.split(",") if part]
    return [int(part) for part in parts] if all(part.isdigit() for part in parts) else None


def planned(step_directory: str) -> list[int]:
    """Return the indices by which the plan calls a task's devices, from what its shim reads."""
    try:
        with open(step_directory + "/spec", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return []
    for word in words:
        name, _, value = word.partition(b"=")
        if name == b"CUDA_VISIBLE_DEVICES":
            return [int(part) for part in value.split(b",") if part.isdigit()]
    return []


def renamed(
    devices: list[Reading] | None, seen: list[int] | None, plan: list[int]
) -> list[Reading] | None:
    """Give devices the indices of the plan: the n-th that a task sees is the n-th it was given."""
    if devices is None or seen is None or len(plan) != len(seen):
        return devices
    return [dict(each, index=plan[seen.index(each["index"])]) for each in devices]


class Task:
    """The process beside which this one lives."""

    def __init__(self, pid: int) -> None:
        """Hold on to a process; one that is gone raises `OSError`."""
        self.pid = pid
        self.handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
        self.woken, self.wake = os.pipe()
        os.kill(pid, 0)

    def outlives(self, wait_s: float) -> bool:
        """Say whether it still lives after a while; returns as soon as it does not, or when woken."""
        ends = [self.handle] if self.handle >= 0 else []
        ready = select.select([self.woken, *ends], [], [], wait_s)[0]
        if self.woken in ready:
            os.read(self.woken, EVENTS_MAX)
        return self.handle not in ready if ends else os.path.exists(f"/proc/{self.pid}")


def take_turn(name: str) -> socket.socket | None:
    """Return a lock if nobody else on this machine reads under a name, kept until this process ends."""
    lock = socket.socket(socket.AF_UNIX)
    try:  # a name of a socket is short
        lock.bind("\0moulin-look:" + hashlib.sha256(name.encode()).hexdigest())
    except OSError:
        lock.close()
        return None
    return lock


def write(path: str, reading: Reading) -> None:
    """Write a reading whole."""
    draft = f"{path}.{os.getpid()}"
    with open(draft, "w", encoding="ascii") as file:
        json.dump(reading, file)
    os.rename(draft, path)


def last_word(before: list[Reading], reading: Reading) -> Reading | None:
    """Return what a reading says of devices that broke since they were read before; None for nothing.

    >>> last_word([{"uuid": "a"}], {"at_ns": 5, "devices": [{"uuid": "a", "is_hot": True}]})
    """
    known = [{name: each[name] for name in LASTING if name in each} for each in before]
    now = reading.get("devices") or []
    lasting = [{name: each[name] for name in LASTING if name in each} for each in now]
    broken = [each for each in lasting if each not in known]
    return dict(reading, devices=broken, disk_free_bytes=-1) if broken else None


class Report:
    """The file in which one reader says what it last read."""

    def __init__(self, path: str) -> None:
        """Write nothing yet."""
        self.path = path
        self.first: list[Reading] | None = None
        self.reading: Reading = {}
        self.facts: Reading = {}
        self.written_s = 0.0

    def take(self, reading: Reading) -> None:
        """Write a reading that says something new, or nothing new for long."""
        self.first = reading["devices"] or [] if self.first is None else self.first
        self.reading = reading
        facts = dict(reading, at_ns=0, disk_free_bytes=reading["disk_free_bytes"] >> 30)
        if facts != self.facts or time.monotonic() - self.written_s >= AGAIN_S:
            write(self.path, reading)
            self.facts, self.written_s = facts, time.monotonic()

    def end(self, *, is_asked: bool) -> None:
        """Leave nothing behind but what the task may have ended of.

        One that was asked to end did not end of itself, and who asked knows why.
        """
        word = None if is_asked else last_word(self.first or [], self.reading)
        if word is not None:
            write(self.path, word)
        elif os.path.exists(self.path):
            os.unlink(self.path)


def watch(folder: str, step_directory: str, task: Task) -> None:
    """Read for as long as a process lives."""
    plan = planned(step_directory)
    seen = visible(os.environ, plan)
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if seen == []:
        # Without devices of its own one reader on each machine is enough.
        lock = take_turn(f"{os.path.abspath(folder)}:{node}")
        if lock is None:
            return
    attempt, rank = os.path.abspath(step_directory).split("/")[-2:]
    report = Report(f"{folder}/{node}/{attempt}.t{rank}")
    os.makedirs(os.path.dirname(report.path), 0o700, exist_ok=True)
    nvml = Nvml() if seen != [] else None
    scratch = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - only how full it is

    def read() -> Reading:
        reading = machine(scratch, nvml, seen)
        return dict(reading, devices=renamed(reading["devices"], seen, plan))

    try:
        is_due = task.outlives(0.0)
        while is_due:
            report.take(read())
            if nvml is not None:
                nvml.begin_to_hear(task.wake)
            is_due = task.outlives(PERIOD_S)
        if report.first:
            report.reading = read()
    finally:
        report.end(is_asked=os.path.exists(step_directory + "/stop"))


def main() -> int:
    """Look once and say it; or watch until the task or a signal ends it, never in its way."""
    if sys.argv[1:] == ["once"]:
        json.dump(machine(os.environ.get("TMPDIR") or "/tmp", Nvml()), sys.stdout)  # noqa: S108
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.nice(19)
    try:
        watch(sys.argv[1], sys.argv[2], Task(int(sys.argv[3])))
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
