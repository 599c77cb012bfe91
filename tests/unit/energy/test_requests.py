"""Shares of a model server's energy: by tokens, by time inside the window, and the unsold."""

from moulin.domain.ids import AttemptId, OrganisationId, ProjectId
from moulin.domain.usage import RequestUsage
from moulin.energy.requests import share_requests


def request(name, tokens_input, tokens_output, *, start_ns=0, end_ns=1000):
    return RequestUsage(
        request=name,
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        key="k",
        model="m",
        replica=AttemptId("r"),
        zone="z",
        start_ns=start_ns,
        end_ns=end_ns,
        tokens_input=tokens_input,
        tokens_output=tokens_output,
        outcome="completed",
    )


def test_an_output_token_weighs_as_much_as_four_input_tokens():
    shares, unsold = share_requests(1000, [request("a", 400, 0), request("b", 0, 100)])
    assert (shares, unsold) == ({"a": 500, "b": 500}, 0)


def test_without_requests_all_is_unsold():
    assert share_requests(1000, []) == ({}, 1000)


def test_a_request_without_tokens_carries_nothing():
    assert share_requests(1000, [request("a", 0, 0)]) == ({"a": 0}, 1000)


def test_a_request_counts_with_the_part_of_its_time_in_the_window():
    shares, unsold = share_requests(
        900,
        [request("a", 100, 0, end_ns=2000), request("b", 100, 0, end_ns=1000)],
        window_ns=(0, 1000),
    )
    assert (shares, unsold) == ({"a": 300, "b": 600}, 0)


def test_standing_energy_is_carried_only_while_a_request_is_open():
    # Open over [100, 400) and [300, 600): half of the window.
    shares, unsold = share_requests(
        1000,
        [
            request("a", 10, 0, start_ns=100, end_ns=400),
            request("b", 10, 0, start_ns=300, end_ns=600),
        ],
        standing_mj=600,
        window_ns=(0, 1000),
    )
    assert unsold == 300
    assert shares == {"a": 350, "b": 350}


def test_an_instant_request_carries_the_load_it_made():
    shares, unsold = share_requests(
        10, [request("a", 5, 5, start_ns=7, end_ns=7)], standing_mj=4, window_ns=(0, 1000)
    )
    assert (shares, unsold) == ({"a": 6}, 4)


def test_a_request_outside_the_window_carries_nothing():
    assert share_requests(10, [request("a", 5, 5)], window_ns=(2000, 3000)) == ({"a": 0}, 10)


def test_the_order_of_requests_changes_nothing():
    three = [request("a", 1, 0), request("b", 1, 0), request("c", 1, 0)]
    assert share_requests(10, three) == share_requests(10, three[::-1])
    assert share_requests(10, three)[0] == {"a": 4, "b": 3, "c": 3}
