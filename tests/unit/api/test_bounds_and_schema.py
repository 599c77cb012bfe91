"""One table of bounds: what is checked is what is described."""

import dataclasses
import re

import pytest

from moulin.api.bounds import BOUNDS, Text, Whole, check_bounds
from moulin.api.schema import Schemas
from moulin.domain import control, factory, snapshot, views
from moulin.domain.control import KeyWanted
from moulin.domain.errors import InvalidSpec
from moulin.domain.workload import EndpointSpec, WorkloadSpec


def test_every_bound_names_a_field_that_is_there():
    for kind, bounds in BOUNDS.items():
        assert set(bounds) <= {item.name for item in dataclasses.fields(kind)}, kind


def test_no_bound_refuses_its_own_fields_default():
    seen = 0
    for kind, bounds in BOUNDS.items():
        for item in dataclasses.fields(kind):
            bound = bounds.get(item.name)
            if isinstance(bound, Text) and isinstance(item.default, str):
                assert re.fullmatch(bound.pattern or ".*", item.default), (kind, item.name)
                seen += 1
            if isinstance(bound, Whole) and isinstance(item.default, int):
                assert bound.minimum <= item.default <= bound.maximum, (kind, item.name)
                seen += 1
    assert seen > 10


@pytest.mark.parametrize(
    "declared",
    [
        factory.Site(name="s", country="FR", pue_ppm=999_999),
        factory.Site(name="s", country="FR", owners={"acme": -1}),
        factory.Site(name="s", country="France"),
        factory.MachineClass(name="m", title="t", peak_mw=-1),
        factory.Project(name="p", organisation="o", quota=factory.Quota(cpu_milli=-2)),
        factory.Project(name="p q", organisation="o"),
        factory.PriceBook(
            name="b",
            effective_from_ns=0,
            prices=(factory.Price(sku="s", meter="smiles", unit_price_neur=1, per=1),),
        ),
    ],
)
def test_what_no_operator_can_mean(declared):
    with pytest.raises(InvalidSpec):
        check_bounds(declared)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_no_number_passes_that_no_column_holds(number):
    with pytest.raises(InvalidSpec):
        check_bounds(factory.Site(name="s", country="FR", power_envelope_w=number))


def test_paths_lead_to_the_place():
    with pytest.raises(InvalidSpec) as raised:
        check_bounds(KeyWanted(name="k", models=("ok", "not\nok")))
    assert raised.value.details["path"] == "models.1"


@pytest.mark.parametrize("module", [control, factory, snapshot, views])
def test_every_value_of_the_wire_has_a_schema(module):
    schemas = Schemas()
    for kind in vars(module).values():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            schemas.reference(kind)
    assert all(component for component in schemas.components.values())


def test_the_schema_says_what_the_wire_does():
    schemas = Schemas()
    assert schemas.reference(WorkloadSpec) == {"$ref": "#/components/schemas/WorkloadSpec"}
    spec = schemas.components["WorkloadSpec"]
    assert spec["required"] == ["kind", "name"]
    assert spec["additionalProperties"] is False
    assert spec["properties"]["priority"] == {"type": "integer", "minimum": 0, "maximum": 100}
    assert spec["properties"]["task"]["anyOf"][1] == {"type": "null"}
    resources = schemas.components["Resources"]["properties"]
    assert resources["memory_bytes"]["type"] == "string"
    assert schemas.components["WorkloadKind"]["enum"] == ["job", "endpoint", "lease", "session"]
    schemas.reference(KeyWanted)
    key = schemas.components["KeyWanted"]["properties"]
    assert key["expires_at"] == {"type": ["string", "null"], "format": "date-time"}
    schemas.reference(EndpointSpec)
    assert schemas.components["EndpointSpec"]["properties"]["is_public"] == {"type": "boolean"}
