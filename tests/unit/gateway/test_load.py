"""When a gateway must tell its load though it has nothing else to say."""

import pytest

from moulin.domain.snapshot import EndpointLoad, GatewayLoad
from moulin.gateway.load import QUEUE_TOLD_EVERY_S, LoadTale

QUIET = GatewayLoad()
SERVING = GatewayLoad(endpoints=(EndpointLoad(endpoint="e", in_flight=2),))
WAITING = GatewayLoad(endpoints=(EndpointLoad(endpoint="e", queued=1, oldest_wait_ms=5),))
LEAVING = GatewayLoad(busy=("e.u0.g1",))


@pytest.mark.parametrize(
    ("told", "now", "after_s", "is_due"),
    [
        (QUIET, QUIET, 100.0, False),
        (QUIET, SERVING, 0.0, False),
        (QUIET, SERVING, QUEUE_TOLD_EVERY_S, True),
        (SERVING, SERVING, 100.0, False),
        (SERVING, WAITING, 0.0, True),
        (WAITING, WAITING, 0.5, False),
        (WAITING, WAITING, QUEUE_TOLD_EVERY_S, True),
        (WAITING, SERVING, 0.0, True),
        (QUIET, LEAVING, 0.0, True),
        (LEAVING, LEAVING, 100.0, False),
        (LEAVING, QUIET, 0.0, True),
    ],
)
def test_what_is_due(told, now, after_s, is_due):
    tale = LoadTale()
    tale.told(told, 1000.0)
    assert tale.is_due(now, 1000.0 + after_s) is is_due
