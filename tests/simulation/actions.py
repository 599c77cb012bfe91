"""What can happen in a step: somebody asks, something breaks, something is mended; drawn by weight."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.tenants import Call
from tests.simulation.world import SECOND, Place

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

Action = Callable[[], str]


class Actions:
    """The table of actions over one simulation."""

    def __init__(self, simulation: "Simulation") -> None:
        self._it = simulation
        self._rng = simulation.rng
        tenants = simulation.tenants
        table: list[tuple[int, Action]] = [
            (30, self._ask(tenants.submit)),
            (6, self._ask(tenants.submit_again)),
            (5, self._ask(tenants.stop)),
            (4, self._ask(tenants.scale)),
            (4, self._ask(tenants.roll_out)),
            (6, self._ask(tenants.steer)),
            (7, self._ask(tenants.apply)),
            (3, self._ask(tenants.create_key)),
            (1, self._ask(tenants.revoke_key)),
            (3, self._ask(tenants.look)),
            (25, self._requests),
            (20, self._let_time_pass),
            (3, self._arm_crash),
            (1, self._kill_process),
            (2, self._fail_commits),
            (3, self._cut_engine),
            (3, self._cut_node),
            (2, self._reboot),
            (1, self._take_node_out),
            (2, self._lose_engine_replies),
            (5, self._disturb_observations),
            (2, self._kill_gateway),
            (4, self._start_gateway),
            (2, self._lose_gateway_reply),
            (1, self._set_clock),
            (2, self._second_leader),
            (6, self._strike),
            (8, self._mend),
        ]
        self._weights = [weight for weight, _ in table]
        self._actions = [action for _, action in table]

    def draw(self) -> str:
        """Do one thing and say what."""
        return self._rng.choices(self._actions, self._weights)[0]()

    def _ask(self, ask: Callable[[Call], str]) -> Action:
        def action() -> str:
            process = self._it.process
            if self._it.former is not None and self._rng.random() < 0.5:
                process = self._it.former
            if process is None:
                return f"{ask.__name__}: no control plane"
            return f"{ask.__name__}: {ask(process.inbox.call)}"

        return action

    # -- load ---------------------------------------------------------------------------------

    def _requests(self) -> str:
        gateway = self._rng.choice(self._it.gateways)
        begun = sum(gateway.begin() for _ in range(self._rng.randint(1, 5)))
        ended = sum(gateway.end() for _ in range(self._rng.randint(0, 4)))
        return f"{gateway.name} begins {begun}, ends {ended}"

    def _let_time_pass(self) -> str:
        duration_s = self._rng.choice([1, 3, 8, 20, 45])
        self._it.clock.advance(duration_s * SECOND)
        return f"{duration_s} s pass"

    # -- the control plane and its store ------------------------------------------------------

    def _arm_crash(self) -> str:
        self._it.faults.crash_in = self._rng.choice([1, 2, 3, 5, 8, 13, 30, 60])
        return f"crash in {self._it.faults.crash_in} writes or effects"

    def _kill_process(self) -> str:
        if self._it.process is not None:
            self._it.process.end()
            self._it.bury()
        return "control plane killed"

    def _fail_commits(self) -> str:
        faults = self._it.faults
        faults.commits_failing = self._rng.choice([1, 1, 2, 4])
        faults.reads_failing = self._rng.choice([0, 0, 1, 2])
        faults.is_full = self._rng.random() < 0.5
        faults.is_unknown = self._rng.random() < 0.3
        return f"commits fail: {faults}"

    def _set_clock(self) -> str:
        self._it.error_ns = self._rng.choice([-120, -20, -1, 0, 1, 20]) * SECOND
        self._kill_process()
        return f"the next process's clock is wrong by {self._it.error_ns} ns"

    def _second_leader(self) -> str:
        if self._it.process is None or self._it.former is not None:
            return "no second leader"
        if not self._it.disk.can_lose_lead:
            return "the lead cannot be lost on this disk"
        self._it.former, self._it.process = self._it.process, None
        self._it.disk.take_lead_away()
        self._it.start_process()
        return "a second control plane takes the lead"

    # -- engines and nodes --------------------------------------------------------------------

    def _cut_engine(self) -> str:
        place = self._rng.choice(list(self._it.places.values()))
        place.world.set_engine_reachable(False)
        return f"engine of {place.pool} is away"

    def _cut_node(self) -> str:
        place = self._rng.choice(list(self._it.places.values()))
        node = self._rng.choice(place.world.capacity()).node
        place.world.set_reachable(node, False)
        return f"{node} is cut off"

    def _reboot(self) -> str:
        """Restart a node, best one that runs something; now and then it is not back at once."""
        busy = [
            place.started[step].nodes[place.started[step].rank]
            for place in self._it.places.values()
            for step in place.world.live_steps()
        ]
        nodes = [each.node for place in self._it.places.values() for each in place.world.capacity()]
        node = self._rng.choice(busy or nodes)
        world = next(p.world for p in self._it.places.values() if node in p.node_names)
        world.reboot(node)
        if self._rng.random() < 0.3:
            world.set_reachable(node, False)
        return f"{node} is restarted"

    def _take_node_out(self) -> str:
        place = self._rng.choice(list(self._it.places.values()))
        node = self._rng.choice(place.world.capacity()).node
        place.hidden.add(node)
        return f"{node} is no longer served"

    def _lose_engine_replies(self) -> str:
        place = self._rng.choice(list(self._it.places.values()))
        place.world.lose_replies(self._rng.randint(1, 3))
        return f"replies of the engine of {place.pool} get lost"

    def _disturb_observations(self) -> str:
        if self._it.process is None or not self._it.process.engines.by_pool:
            return "no engine to disturb"
        engine = self._rng.choice(list(self._it.process.engines.by_pool.values())).inner
        kind = self._rng.choice(["drop", "hold", "double"])
        if kind == "drop":
            engine.drop_observations(self._rng.randint(1, 4))
        elif kind == "hold":
            engine.is_holding = True
        else:
            engine.is_doubling = True
        return f"observations: {kind}"

    def _strike(self) -> str:
        return self._it.nursing.strike(self._rng)

    def _mend(self) -> str:
        for place in self._it.places.values():
            if self._rng.random() < 0.6:
                mend(place)
        for engine in self._it.process.engines.by_pool.values() if self._it.process else ():
            engine.inner.is_holding = engine.inner.is_doubling = False
        return "mended"

    # -- gateways -----------------------------------------------------------------------------

    def _kill_gateway(self) -> str:
        gateway = self._rng.choice(self._it.gateways)
        gateway.kill()
        if self._rng.random() < 0.15:
            gateway.lose_journals()
            return f"{gateway.name} is killed and its journals are gone"
        return f"{gateway.name} is killed"

    def _start_gateway(self) -> str:
        for gateway in self._it.gateways:
            if not gateway.is_alive:
                gateway.start()
                return f"{gateway.name} starts"
        return "both gateways are up"

    def _lose_gateway_reply(self) -> str:
        self._it.replies_lost += 1
        return "the next answer to a gateway gets lost"


def mend(place: Place) -> None:
    """Reconnect a pool's engine and nodes."""
    world = place.world
    place.hidden.clear()
    world.set_engine_reachable(True)
    for capacity in world.capacity():
        if not capacity.is_reachable:
            world.set_reachable(capacity.node, True)
    world.lose_replies(0)
