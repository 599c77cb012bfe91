"""Those who ask: tenants and an operator, with answers that get lost and requests sent again.

A submission is repeated under its idempotency key until it is answered, each time with a fresh id, as
an edge would draw it. What was promised to them is kept for the judge.
"""

import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from moulin.controlplane.commands import (
    AdjustWorkload,
    Answer,
    ApplyFactory,
    Command,
    CreateKey,
    ExplainWorkload,
    Idempotency,
    ReadStatus,
    RevokeKey,
    RolloutEndpoint,
    ScaleEndpoint,
    StopElements,
    StopWorkload,
    StopWorkloads,
    SubmitWorkload,
    TryWorkload,
)
from moulin.domain.control import AdjustWanted, StopWanted
from moulin.domain.errors import DiskFull, MoulinError, StaleGeneration, StoreError
from moulin.domain.factory import DeclaredObject, PriceBook, Zone
from moulin.domain.ids import PREFIX_BY_KIND, ProjectId, WorkloadId, make_id
from moulin.domain.views import WorkloadView
from moulin.domain.workload import WorkloadKind, WorkloadSpec
from tests.simulation import scenario
from tests.simulation.world import SECOND, TrueClock

Call = Callable[[Command], "Future[Answer]"]
FILE = "factory.yaml"
RETENTIONS_S = (0, 10, 60, 300, 604_800)


@dataclass(slots=True)
class Wish:
    """One submission as its tenant sees it; `ids` are all ids it was ever sent with."""

    key: str
    project: str
    spec: WorkloadSpec
    ids: list[WorkloadId] = field(default_factory=list)
    granted: WorkloadId | None = None
    is_refused: bool = False

    @property
    def is_open(self) -> bool:
        return self.granted is None and not self.is_refused


@dataclass(slots=True)
class Asked:
    """A call on its way, or its answer."""

    command: Command
    future: "Future[Answer]"
    wish: Wish | None = None


@dataclass(slots=True)
class Tenants:
    """Everybody outside. `objects` is what the operator wants declared."""

    rng: random.Random
    clock: TrueClock
    objects: tuple[DeclaredObject, ...]
    wishes: list[Wish] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    wanted: tuple[DeclaredObject, ...] = ()

    # -- asking -------------------------------------------------------------------------------

    def submit(self, call: Call) -> str:
        """Submit something new."""
        zones = [each.name for each in self.objects if isinstance(each, Zone)]
        retention_s = RETENTIONS_S[len(self.wishes) % len(RETENTIONS_S)]
        spec = replace(scenario.workload_spec(self.rng, zones), retention_s=retention_s)
        project = self.rng.choice(sorted(scenario.ORGANISATION_BY_PROJECT))
        ours = [wish.granted for wish in self.wishes if wish.granted and wish.project == project]
        spec = scenario.steered(self.rng, spec, ours[-5:])
        wish = Wish(f"idem-{len(self.wishes)}", project, spec)
        self.wishes.append(wish)
        return f"{wish.key}: {self._send(call, wish)}"

    def submit_again(self, call: Call) -> str:
        """Send an unanswered submission again, or now and then one that was answered."""
        open_wishes = [wish for wish in self.wishes if wish.is_open]
        if not self.wishes:
            return "nothing"
        chosen = self.rng.choice(open_wishes or self.wishes)
        return f"{chosen.key}: {self._send(call, chosen)}"

    def resend(self, call: Call, wish: Wish) -> None:
        """Send one submission again."""
        self._send(call, wish)

    def stop(self, call: Call) -> str:
        """Ask for the end of one workload."""
        granted = [wish for wish in self.wishes if wish.granted]
        if not granted:
            return "nothing"
        wish = self.rng.choice(granted)
        self._ask(call, self._stop_of(wish))
        return str(wish.granted)

    def stop_all(self, call: Call) -> None:
        """Ask for the end of everything that would never end by itself."""
        for wish in self.wishes:
            if wish.granted and wish.spec.kind is WorkloadKind.ENDPOINT:
                self._ask(call, self._stop_of(wish))

    def steer(self, call: Call) -> str:
        """Hold, release or reprioritise a job, stop elements of an array, or all of one name."""
        jobs = [w for w in self.wishes if w.granted and w.spec.kind is WorkloadKind.JOB]
        if not jobs:
            return "nothing"
        wish = self.rng.choice(jobs[-12:])
        assert wish.granted
        principal, dice = scenario.member(wish.project), self.rng.random()
        command: Command
        if wish.spec.array is not None and dice < 0.35:
            index = wish.spec.array.index_of(self.rng.randrange(wish.spec.array.size))
            command = StopElements(principal=principal, workload=wish.granted, indices=(index,))
        elif dice < 0.4:
            wanted = StopWanted(name="lease", is_dry_run=self.rng.random() < 0.5)
            command = StopWorkloads(
                principal=principal, project=ProjectId(wish.project), wanted=wanted
            )
        else:
            is_held = self.rng.choice([True, False, False, None])
            adjusted = AdjustWanted(is_held=is_held, priority=self.rng.choice([None, 20, 80]))
            command = AdjustWorkload(principal=principal, workload=wish.granted, wanted=adjusted)
        self._ask(call, command)
        return f"{command}"

    def scale(self, call: Call) -> str:
        """Ask for another number of replicas."""
        endpoints = [w for w in self.wishes if w.granted and w.spec.kind is WorkloadKind.ENDPOINT]
        if not endpoints:
            return "nothing"
        wish, replicas = self.rng.choice(endpoints), self.rng.choice([0, 1, 2, 3])
        assert wish.granted
        principal = scenario.member(wish.project)
        scaling = scenario.scaling(self.rng) if self.rng.random() < 0.4 else None
        command = ScaleEndpoint(
            principal=principal, workload=wish.granted, replicas=replicas, scaling=scaling
        )
        self._ask(call, command)
        return f"{wish.granted} to {replicas}, {scaling}"

    def roll_out(self, call: Call) -> str:
        """Let an endpoint serve something else, or again what it served before."""
        endpoints = [w for w in self.wishes if w.granted and w.spec.kind is WorkloadKind.ENDPOINT]
        if not endpoints:
            return "nothing"
        wish, wanted = self.rng.choice(endpoints), scenario.rollout(self.rng)
        assert wish.granted
        principal = scenario.member(wish.project)
        self._ask(call, RolloutEndpoint(principal=principal, workload=wish.granted, wanted=wanted))
        return f"{wish.granted}: {wanted}"

    def apply(self, call: Call) -> str:
        """Change the operator's file and apply it, sometimes with new prices from later on."""
        if self.rng.random() < 0.2:
            name = f"book-{sum(isinstance(each, PriceBook) for each in self.objects)}"
            effective_ns = self.clock.now_ns() + self.rng.choice([0, 20]) * SECOND
            book = scenario.price_book(name, effective_ns, self.rng.choice([1, 2, 3]))
            wanted: tuple[DeclaredObject, ...] = (*self.objects, book)
        else:
            wanted = scenario.changed(self.rng, self.objects)
        self._ask(call, ApplyFactory(principal=scenario.OPERATOR, managed_by=FILE, objects=wanted))
        return ", ".join(repr(each) for each in wanted if each not in self.objects)

    def begin(self, call: Call) -> None:
        """Declare the factory and create a key for each project."""
        self._ask(
            call, ApplyFactory(principal=scenario.OPERATOR, managed_by=FILE, objects=self.objects)
        )
        for project in sorted(scenario.ORGANISATION_BY_PROJECT):
            self._create_key(call, project)

    def submit_first(self, call: Call) -> None:
        """Submit the endpoint that gateways need for having anything to do."""
        wish = Wish("idem-first", "web", scenario.public_endpoint(self.rng))
        self.wishes.append(wish)
        self._send(call, wish)

    def create_key(self, call: Call) -> str:
        """Create an inference key."""
        return self._create_key(call, self.rng.choice(sorted(scenario.ORGANISATION_BY_PROJECT)))

    def revoke_key(self, call: Call) -> str:
        """Revoke a key that was created."""
        if not self.keys:
            return "nothing"
        key = self.rng.choice(self.keys)
        self._ask(call, RevokeKey(principal=scenario.OPERATOR, key=key))
        return key

    def look(self, call: Call) -> str:
        """Ask what changes nothing."""
        granted = [wish.granted for wish in self.wishes if wish.granted]
        dice = self.rng.random()
        if dice < 0.4 and granted:
            self._ask(call, ExplainWorkload(workload=self.rng.choice(granted)))
        elif dice < 0.7:
            self._ask(call, ReadStatus())
        else:
            zones = [each.name for each in self.objects if isinstance(each, Zone)]
            project = self.rng.choice(sorted(scenario.ORGANISATION_BY_PROJECT))
            spec = scenario.workload_spec(self.rng, zones)
            principal = scenario.member(project)
            self._ask(call, TryWorkload(principal=principal, project=ProjectId(project), spec=spec))
        return "look"

    # -- hearing ------------------------------------------------------------------------------

    def hear(self, *, is_gone: bool) -> list[tuple[Command, Answer | MoulinError]]:
        """Return what was answered since the last time; with `is_gone` the rest is lost."""
        heard: list[tuple[Command, Answer | MoulinError]] = []
        waiting = []
        for asked in self.asked:
            if not asked.future.done():
                waiting.append(asked)
                continue
            error = asked.future.exception()
            assert error is None or isinstance(error, MoulinError)
            answer = asked.future.result() if error is None else error
            self._learn(asked, answer)
            heard.append((asked.command, answer))
        self.asked = [] if is_gone else waiting
        return heard

    def _learn(self, asked: Asked, answer: Answer | MoulinError) -> None:
        is_unknown = isinstance(answer, (StoreError, DiskFull, StaleGeneration))
        if asked.wish is not None:
            if isinstance(answer, WorkloadView):
                asked.wish.granted = WorkloadId(answer.id)
            elif not is_unknown:
                asked.wish.is_refused = True
        elif isinstance(asked.command, ApplyFactory) and not isinstance(answer, MoulinError):
            self.objects = asked.command.objects
        elif isinstance(asked.command, CreateKey) and not isinstance(answer, MoulinError):
            self.keys.append(asked.command.key.id)

    def _create_key(self, call: Call, project: str) -> str:
        name = make_id("key", self.clock.now_ns(), self.rng.getrandbits(80))
        key = scenario.api_key(project, name, f"digest of {name}")
        self._ask(call, CreateKey(principal=scenario.member(project), key=key))
        return name

    def _send(self, call: Call, wish: Wish) -> WorkloadId:
        prefix = PREFIX_BY_KIND[wish.spec.kind]
        workload = WorkloadId(make_id(prefix, self.clock.now_ns(), self.rng.getrandbits(80)))
        wish.ids.append(workload)
        command = SubmitWorkload(
            principal=scenario.member(wish.project),
            project=ProjectId(wish.project),
            spec=wish.spec,
            id=workload,
            idempotency=Idempotency(key=wish.key, body_hash=f"hash of {wish.key}"),
        )
        self.asked.append(Asked(command, call(command), wish))
        return workload

    def _ask(self, call: Call, command: Command) -> None:
        self.asked.append(Asked(command, call(command)))

    def _stop_of(self, wish: Wish) -> StopWorkload:
        assert wish.granted
        return StopWorkload(principal=scenario.member(wish.project), workload=wish.granted)
