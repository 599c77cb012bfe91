"""Titles of problems by language, and the page of counters."""

import pytest

from moulin.api.messages import ENGLISH, LANGUAGES, choose_language, title
from moulin.api.metrics import Metrics
from moulin.domain.errors import all_errors


def test_every_error_has_a_title_in_every_language():
    codes = {error.code for error in all_errors() if error.__module__ == "moulin.domain.errors"}
    for language, catalogue in LANGUAGES.items():
        assert set(catalogue) == codes, language


def test_titles_are_for_people():
    assert all(words and words[0].isupper() for words in ENGLISH.values())
    assert title("never_heard_of") == ENGLISH["moulin_error"]


@pytest.mark.parametrize(
    "accept", ["", "*", "fr", "en-GB", "de;q=1, en;q=0.1", "en;q=x", ";;;,,,", "q" * 10_000]
)
def test_any_header_gives_a_language_there_is(accept):
    assert choose_language(accept) in LANGUAGES


def test_the_page_counts_requests_by_route_not_by_object():
    metrics = Metrics("1.2")
    metrics.count("GET", "/workloads/{workload}", 200, 1_500_000)
    metrics.count("GET", "/workloads/{workload}", 200, 500_000)
    metrics.count("BREW", "other", 405, 1)
    metrics.count("PROPFIND", "other", 405, 1)
    metrics.reject("expired")
    lines = metrics.text().splitlines()
    route = 'route="/workloads/{workload}"'
    assert f'moulin_api_requests_total{{method="GET",{route},status="200"}} 2' in lines
    assert 'moulin_api_requests_total{method="other",route="other",status="405"} 2' in lines
    assert f"moulin_api_request_seconds_sum{{{route}}} 0.002000" in lines
    assert 'moulin_api_rejected_keys_total{cause="expired"} 1' in lines
    assert 'moulin_build_info{version="1.2"} 1' in lines
