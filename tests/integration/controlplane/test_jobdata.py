"""Secrets and bundles through the whole control plane: opened for one step, gone when they are gone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moulin.controlplane.commands import DeleteObject, DeleteSecret, SetSecret, StoreObject
from moulin.domain.errors import EngineUnavailable, InUse, NotFound, QuotaExceeded, Refused
from moulin.domain.event_wire import encode_event
from moulin.domain.factory import Project
from moulin.domain.ids import ProjectId, make_id
from moulin.domain.objects import StoredKind, StoredObject
from moulin.domain.secrets import SECRETS_MAX, SealedSecret
from moulin.domain.workload import WorkloadSpec, WorkloadState
from moulin.sources.vault import Vault
from moulin.store.memory import WritePoint
from tests.integration.controlplane.bench import ADMIN, START_NS, Bench, factory, job

VALUE = "canary of a control plane"
DIGEST = "ab" * 32


@pytest.fixture
def vault(mill: Bench, tmp_path: Path) -> Vault:
    made = Vault(tmp_path / "secrets", tmp_path / "secrets.key")
    equip(mill, made)
    return made


def equip(mill: Bench, vault: Vault) -> None:
    ports = replace(mill.plane.ports, vault=vault, bytes_at=lambda name: f"/objects/{name}")
    mill.plane.ports = ports


def put(mill: Bench, vault: Vault, name: str = "TOKEN", value: str = VALUE) -> SealedSecret:
    blank = SealedSecret(
        id=make_id("sec", START_NS, mill.dice.entropy()),
        organisation=ADMIN.organisation,
        project=ADMIN.project,
        name=name,
        ciphertext=b"",
        set_by=ADMIN.name,
        set_at_ns=START_NS,
    )
    sealed = vault.seal(blank, value.encode())
    mill.tell(SetSecret(principal=ADMIN, secret=sealed))
    return sealed


def delete(mill: Bench, name: str = "TOKEN") -> None:
    mill.tell(DeleteSecret(principal=ADMIN, project=ADMIN.project, name=name))


def with_secrets(**more: Any) -> WorkloadSpec:
    plain = job(5)
    assert plain.task is not None
    task = replace(plain.task, secrets={"HF_TOKEN": "TOKEN"}, secret_files={"KEY": "TOKEN"})
    return replace(plain, task=task, **more)


def test_a_step_gets_values_and_the_log_never_does(mill: Bench, vault: Vault) -> None:
    put(mill, vault, value="an earlier value")
    put(mill, vault)
    view = mill.submit(with_secrets())
    mill.turn()
    [step] = [each for each in mill.machines["floor"].asked if each.workload == view.id]
    assert (step.secrets, step.secret_files) == ({"HF_TOKEN": VALUE}, {"KEY": VALUE})
    log = "".join(str(encode_event(event)) for event in mill.store.events(0))
    assert VALUE not in log + repr(step) + repr(mill.plane.books)
    assert len(vault.ids()) == 1


def test_a_name_that_the_project_has_not_is_refused(mill: Bench, vault: Vault) -> None:
    with pytest.raises(Refused, match="the secret TOKEN, which project atelier has not") as caught:
        mill.submit(with_secrets())
    assert "moulin secrets set" in caught.value.hint
    with pytest.raises(NotFound):
        delete(mill)


def test_a_deleted_secret_is_noise_in_every_copy(mill: Bench, vault: Vault) -> None:
    sealed = put(mill, vault)
    view = mill.submit(with_secrets(is_held=True))
    delete(mill)
    assert vault.ids() == ()
    with pytest.raises(NotFound):
        vault.open(sealed)
    mill.reopen()
    equip(mill, vault)
    assert mill.plane.books.sealed.by_name == {}
    assert mill.plane.books.sealed.dropped == [sealed.id]
    mill.turn()
    assert mill.plane.books.sealed.dropped == []
    assert mill.state(view.id) == WorkloadState.ADMITTED


def test_work_whose_secret_went_does_not_start_and_what_runs_goes_on(
    mill: Bench, vault: Vault
) -> None:
    put(mill, vault)
    machines = mill.machines["floor"]
    running = mill.submit(with_secrets())
    # Its start took place, and nobody here knows.
    [begun] = [each.step for each in machines.asked if each.workload == running.id]
    mill.plane.unstarted.add(begun)
    machines.start_faults = [EngineUnavailable("a test says so")] * 20
    waiting = mill.submit(with_secrets(name="later"))
    delete(mill)
    machines.start_faults = []
    mill.turns(3, 0.5)
    assert mill.state(running.id) == WorkloadState.RUNNING
    assert mill.state(waiting.id) == WorkloadState.FAILED
    assert "secret TOKEN of project atelier is gone" in str(mill.row(waiting.id))


def test_a_commit_that_fails_destroys_no_key(mill: Bench, vault: Vault) -> None:
    sealed = put(mill, vault)

    def fail(point: WritePoint) -> None:
        raise OSError(28, "no space")

    mill.fault = fail
    with pytest.raises(Exception, match=r".*"):
        delete(mill)
    mill.fault = None
    assert vault.open(sealed).decode() == VALUE


def test_a_project_that_goes_takes_its_secrets_along(mill: Bench, vault: Vault) -> None:
    put(mill, vault)
    kept = [
        each for each in factory() if not (isinstance(each, Project) and each.name == ADMIN.project)
    ]
    mill.apply(*kept)
    assert vault.ids() == ()


def test_there_is_a_limit(mill: Bench, vault: Vault) -> None:
    for number in range(SECRETS_MAX):
        mill.plane.books.sealed.by_name["atelier", f"S{number}"] = sealed_as(mill, f"S{number}")
    with pytest.raises(QuotaExceeded):
        put(mill, vault)
    put(mill, vault, "S0")
    unknown = replace(sealed_as(mill, "X"), project=ProjectId("nobody"))
    with pytest.raises(NotFound):
        mill.tell(SetSecret(principal=ADMIN, secret=unknown))


def sealed_as(mill: Bench, name: str) -> SealedSecret:
    return SealedSecret(
        id=make_id("sec", START_NS, mill.dice.entropy()),
        organisation=ADMIN.organisation,
        project=ADMIN.project,
        name=name,
        ciphertext=b"x",
        set_by="ada",
        set_at_ns=1,
    )


def bundle(number: int) -> StoredObject:
    return StoredObject(
        id=make_id("bundle", START_NS, number),
        kind=StoredKind.BUNDLE,
        organisation=ADMIN.organisation,
        project=ADMIN.project,
        key=ADMIN.key,
        name="",
        purpose="",
        size_bytes=10,
        sha256=DIGEST,
        created_at_ns=1,
        expires_at_ns=2,
    )


def test_a_bundle_is_there_as_long_as_work_needs_it(mill: Bench, vault: Vault) -> None:
    plain = job(5)
    assert plain.task is not None
    spec = replace(plain, task=replace(plain.task, bundle=DIGEST))
    with pytest.raises(Refused, match="bundle abababababab, which project atelier does not keep"):
        mill.submit(spec)
    first, second = bundle(1), bundle(2)
    mill.tell(StoreObject(principal=ADMIN, object=first))
    view = mill.submit(spec)
    with pytest.raises(InUse, match=view.id):
        mill.tell(DeleteObject(principal=ADMIN, object=first.id))
    mill.turn()
    [step] = [each for each in mill.machines["floor"].asked if each.workload == view.id]
    assert step.bundle_path == f"/objects/{first.id}"
    # Sent again before the first one expires: that one goes, the work keeps the other.
    mill.tell(StoreObject(principal=ADMIN, object=second))
    mill.tell(DeleteObject(principal=ADMIN, object=first.id))
    with pytest.raises(InUse):
        mill.tell(DeleteObject(principal=ADMIN, object=second.id))
    mill.turns(3, 10)
    assert mill.state(view.id) == WorkloadState.SUCCEEDED
    mill.tell(DeleteObject(principal=ADMIN, object=second.id))
    assert mill.plane.books.objects.bundles == {}
