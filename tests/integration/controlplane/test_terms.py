"""What a model's licence and life do to its deployment, through the real cycle."""

import pytest

from moulin.controlplane.commands import AcceptLicence
from moulin.domain.errors import LicenceNotAccepted, NotFound, Refused
from moulin.domain.events import LicenceAccepted, WorkloadRefused
from moulin.domain.ids import ProjectId
from moulin.domain.terms import Lifecycle, ModelTerms
from tests.integration.controlplane.bench import ADMIN, MODEL, endpoint

TERMS = ModelTerms(model=MODEL, licence="strict", licence_url="https://terms.example")


def accept(project: str = "atelier") -> AcceptLicence:
    return AcceptLicence(principal=ADMIN, project=ProjectId(project), model=MODEL, licence="strict")


def logged(mill, kind):
    return [event for event in mill.store.events(0) if isinstance(event.payload, kind)]


def test_a_licence_is_accepted_before_its_model_is_deployed(mill):
    mill.shelf.terms[MODEL] = TERMS
    with pytest.raises(LicenceNotAccepted, match=r"https://terms\.example") as caught:
        mill.submit(endpoint())
    assert "--accept-licence" in caught.value.hint
    assert len(logged(mill, WorkloadRefused)) == 1
    accepted = mill.tell(accept())
    assert (accepted.organisation, accepted.by) == ("lab", "ada")
    assert mill.submit(endpoint()).name == "chat"


def test_who_accepted_and_when_is_recorded_once(mill):
    first = mill.tell(accept())
    mill.turns(3, 1.0)
    assert mill.tell(accept()) == first
    (event,) = logged(mill, LicenceAccepted)
    assert event.payload == LicenceAccepted(licence="strict", model=MODEL, by="ada")
    assert (event.actor, event.organisation, event.at_ns) == ("key_admin", "lab", first.at_ns)


def test_an_acceptance_outlives_the_process(mill):
    mill.shelf.terms[MODEL] = TERMS
    mill.tell(accept())
    mill.reopen()
    assert mill.submit(endpoint()).name == "chat"


def test_nobody_accepts_for_a_project_that_does_not_exist(mill):
    with pytest.raises(NotFound):
        mill.tell(accept("nowhere"))
    assert logged(mill, LicenceAccepted) == []


def test_a_retired_model_is_refused_and_its_successor_named(mill):
    life = Lifecycle(retired_from="1970-01-02", successor="newer")
    mill.shelf.terms[MODEL] = ModelTerms(model=MODEL, lifecycle=life)
    with pytest.raises(Refused, match="its successor: newer"):
        mill.submit(endpoint())


def test_what_runs_outlives_the_retirement_of_its_model(mill):
    view = mill.submit(endpoint())
    mill.turns(5, 1.0)
    life = Lifecycle(retired_from="1970-01-02", successor="newer")
    mill.shelf.terms[MODEL] = ModelTerms(model=MODEL, lifecycle=life)
    mill.turns(5, 1.0)
    assert mill.row(view.id).state == "running"
    assert mill.scale(view.id, 2).id == view.id


def test_a_deprecated_model_is_still_deployed(mill):
    life = Lifecycle(deprecated_from="1970-01-02", successor="newer")
    mill.shelf.terms[MODEL] = ModelTerms(model=MODEL, lifecycle=life)
    assert mill.submit(endpoint()).name == "chat"
