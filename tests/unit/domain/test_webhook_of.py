"""Where alerts go: one rule for those who send them and for those who ask."""

import pytest

from moulin.domain.factory import Organisation, Project, webhook_of

OWN, SHARED = "https://lab.example/hook", "https://uni.example/hook"


@pytest.mark.parametrize(
    ("project", "organisation", "url"),
    [
        (OWN, SHARED, OWN),
        ("", SHARED, SHARED),
        (OWN, "", OWN),
        ("", "", ""),
    ],
)
def test_a_projects_own_address_comes_before_its_organisations(
    project: str, organisation: str, url: str
) -> None:
    lab = Project(name="lab", organisation="uni", webhook=project)
    assert webhook_of(lab, Organisation(name="uni", webhook=organisation)) == url


def test_who_is_not_declared_has_no_address() -> None:
    assert webhook_of(None, None) == ""
    assert webhook_of(None, Organisation(name="uni", webhook=SHARED)) == SHARED
