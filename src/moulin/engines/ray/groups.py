"""Ray's placement groups: all places of an attempt are reserved together or not at all.

A group is named after its attempt and lives until it is removed, so an agent that comes later finds
those of its forerunner. Inside Ray a group keeps other work off; what runs in it is the nodes' affair.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

WAIT_S: Final = 2.0
# A group whose first task has not started yet is not given back before this.
UNUSED_S: Final = 60.0


class Groups:
    """The groups of one pool."""

    def __init__(self, pool: str) -> None:
        self._prefix = f"moulin/{pool}/"
        self._kept_until: dict[str, float] = {}

    def reserve(
        self,
        attempt: str,
        places: Sequence[dict[str, str]],
        resources: Mapping[str, Any],
    ) -> bool:
        """Reserve `resources` at each of `places`, label selectors; return whether Ray has done so."""
        self._kept_until[attempt] = time.monotonic() + UNUSED_S
        return bool(self._group(attempt, places, resources).wait(WAIT_S))

    def _group(
        self, attempt: str, places: Sequence[dict[str, str]], resources: Mapping[str, Any]
    ) -> PlacementGroup:
        name = self._prefix + attempt
        with contextlib.suppress(ValueError):
            return get_placement_group(name)
        is_spread = len({tuple(sorted(place.items())) for place in places}) == len(places)
        return placement_group(
            [bundle_of(resources)] * len(places),
            strategy="STRICT_SPREAD" if is_spread else "SPREAD",
            name=name,
            lifetime="detached",
            bundle_label_selector=list(places),
        )

    def started(self, attempt: str) -> None:
        """Know that a task of the attempt has started: from now on its end ends the group."""
        self._kept_until[attempt] = time.monotonic()

    def release_all_but(self, running: set[str], listed: set[str], listed_at: float) -> None:
        """Remove the groups of attempts that do not run, unless they were asked for since.

        `listed` are Ray's ids of the nodes whose tasks `running` names; a group that has a place
        on any other node is kept.
        """
        for entry in placement_group_table().values():
            attempt = entry["name"].removeprefix(self._prefix)
            is_ours = entry["name"].startswith(self._prefix) and entry["state"] != "REMOVED"
            places = set(entry["bundles_to_node_id"].values()) - {""}
            if not is_ours or attempt in running or not places <= listed:
                continue
            if self._kept_until.get(attempt, 0.0) < listed_at:
                self._kept_until.pop(attempt, None)
                with contextlib.suppress(ValueError, ray.exceptions.RayError):
                    remove_placement_group(get_placement_group(entry["name"]))


def bundle_of(resources: Mapping[str, Any]) -> dict[str, float]:
    """Return what one task holds, in Ray's words; at least a trace, as Ray takes no empty bundle."""
    wanted = {
        "CPU": int(resources["cpu_milli"]) / 1000,
        "GPU": float(resources["accelerators"]),
        "memory": float(resources["memory_bytes"]),
    }
    return {name: amount for name, amount in wanted.items() if amount} or {"CPU": 0.001}
