"""A node is put away, nothing starts on it, and it comes back: as an operator does it."""

from moulin.domain.needs import Need


def test_a_node_is_put_away_and_brought_back(mill):
    node = "this-machine-0"
    assert "healthy" in mill.moulin("nodes").stdout
    assert [each["health"] for each in mill.json("nodes")["items"]] == ["healthy"]
    done = mill.moulin("nodes", "quarantine", node, "--because", "a loud fan")
    assert "is quarantined" in done.stdout
    assert "a loud fan" in mill.moulin("nodes").stdout
    waiting = mill.json("run", "--name", "waits", "--time-limit", "1m", "--", "true")
    codes = [each["code"] for each in mill.json("why", waiting["id"])["reasons"]]
    assert codes == ["InsufficientCapacity", "NodeQuarantined"]
    checked = mill.json("nodes", "check", node)
    assert (checked["health"], checked["symptoms"]) == ("quarantined", [])
    assert mill.json("nodes", "release", node)["health"] == "healthy"
    mill.until(lambda: mill.json("why", waiting["id"])["state"] == "succeeded")


def test_a_node_that_is_none(mill):
    done = mill.moulin("nodes", "check", "nothing-like-it")
    assert done.returncode == 1
    assert "there is none" in done.stderr


def test_what_a_node_lacks_is_listed(mill):
    (told,) = mill.json("nodes")["items"]
    shown = mill.moulin("nodes").stdout
    assert ("this-machine-0 cannot carry: " in shown) is bool(told["lacks"])
    assert set(told["lacks"]) <= {need.value for need in Need}
    assert ("an SSH login" in shown) is ("login" in told["lacks"])
