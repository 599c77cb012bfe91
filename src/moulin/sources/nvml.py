"""Reads the health of NVIDIA accelerators through NVML; decides nothing about what it means.

XIDs are told once, as events, so they are counted here for as long as this object lives; a reader that
misses a reading misses nothing. What cannot be read is said to be unknown, never to be well: much of it
cannot under MIG. A device that the driver has lost is left out of the reading.
"""

import contextlib
import importlib
import time
from collections import Counter
from typing import Any, Final

from moulin.domain.health import DeviceReading

LINKS_MAX: Final = 18
# Of the reasons for lower clocks (nvml.h): heat as hardware and software see it, and the brake line.
_HEAT: Final = 0x40 | 0x20
_BRAKE: Final = 0x80
_EVENTS_MAX: Final = 1_000


class NvmlHealth:
    """One connection to the driver. Not safe for two threads at once."""

    def __init__(self, nvml: Any = None) -> None:
        """Use a module like `pynvml`; the installed one by default."""
        self._nvml = nvml
        self._events: Any = None
        self._xids: dict[str, Counter[str]] = {}
        self._links_up: dict[str, int] = {}
        self._since_ns = time.time_ns()
        self._is_open = False

    def read(self) -> tuple[DeviceReading, ...] | None:
        """Return every accelerator that answers, in PCI order; None when none can be asked for."""
        if not self._open():
            return None
        nvml = self._nvml
        try:
            count = int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError:
            self._is_open = False  # the driver was taken away; it is looked for again next time
            return None
        handles = self._handles(count)
        self._count_xids({uuid: index for index, (uuid, _) in handles.items()})
        return tuple(self._device(index, uuid, handle) for index, (uuid, handle) in handles.items())

    def _open(self) -> bool:
        if self._is_open:
            return True
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError:
                return False
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError:
            return False
        self._is_open, self._events = True, None
        return True

    def _handles(self, count: int) -> dict[int, tuple[str, Any]]:
        found: dict[int, tuple[str, Any]] = {}
        for index in range(count):
            with contextlib.suppress(self._nvml.NVMLError):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = self._nvml.nvmlDeviceGetUUID(handle)
                found[index] = (uuid.decode() if isinstance(uuid, bytes) else uuid, handle)
        self._listen(found)
        return found

    def _listen(self, handles: dict[int, tuple[str, Any]]) -> None:
        """Ask to be told of XIDs; a driver that does not tell leaves their counts empty."""
        if self._events is not None:
            return
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return
        for _, handle in handles.values():
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlDeviceRegisterEvents(
                    handle, nvml.nvmlEventTypeXidCriticalError, self._events
                )

    def _count_xids(self, known: dict[str, int]) -> None:
        nvml = self._nvml
        if self._events is None:
            return
        for _ in range(_EVENTS_MAX):
            try:
                told = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                return  # nothing more was told
            with contextlib.suppress(nvml.NVMLError):
                uuid = nvml.nvmlDeviceGetUUID(told.device)
                uuid = uuid.decode() if isinstance(uuid, bytes) else uuid
                self._xids.setdefault(uuid, Counter())[str(int(told.eventData))] += 1

    def _device(self, index: int, uuid: str, handle: Any) -> DeviceReading:
        nvml = self._nvml
        remapped = self._asked(nvml.nvmlDeviceGetRemappedRows, handle)
        reasons = self._asked(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        errors = self._asked(
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        return DeviceReading(
            index=index,
            uuid=uuid,
            xids=dict(sorted(self._xids.get(uuid, {}).items())),
            ecc_uncorrected=-1 if errors is None else int(errors),
            is_remap_pending=None if remapped is None else bool(remapped[2]),
            is_remap_failed=None if remapped is None else bool(remapped[3]),
            is_hot=None if reasons is None else bool(reasons & _HEAT),
            is_braked=None if reasons is None else bool(reasons & _BRAKE),
            links_down=self._links_down(uuid, handle),
            xids_since_ns=self._since_ns,
        )

    def _links_down(self, uuid: str, handle: Any) -> int:
        """Return how many links are down that were up once; -1 where there are none to ask for."""
        states = [
            self._asked(self._nvml.nvmlDeviceGetNvLinkState, handle, link)
            for link in range(LINKS_MAX)
        ]
        known = [state for state in states if state is not None]
        if not known:
            return -1
        up = sum(map(bool, known))
        self._links_up[uuid] = max(self._links_up.get(uuid, 0), up)
        return self._links_up[uuid] - up

    def _asked(self, ask: Any, *arguments: Any) -> Any:
        """Return what the driver says, None when it will not."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return None
