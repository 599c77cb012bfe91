"""`moulin alias`, against a running factory."""


def targets(mill):
    return {item["name"]: item["targets"] for item in mill.json("alias", "list")["items"]}


def test_a_name_grows_a_canary_is_rolled_back_and_removed(mill):
    done = mill.moulin("alias", "set", "chat", "v1=95", "v2=5", "--sunset", "2030-01-01T00:00:00Z")
    assert (done.returncode, done.stdout.strip()) == (0, "chat stands for v1=95, v2=5")
    assert targets(mill)["chat"] == {"v1": 95, "v2": 5}
    shown = mill.moulin("alias", "list").stdout
    assert "v1=95, v2=5" in shown
    assert "2030-01-01" in shown
    assert mill.json("alias", "set", "chat", "v1")["diffs"][0]["action"] == "update"
    assert targets(mill)["chat"] == {"v1": 1}
    assert mill.moulin("alias", "remove", "chat").stdout.strip() == "chat is removed"
    assert "chat" not in targets(mill)
    again = mill.moulin("alias", "remove", "chat")
    assert (again.returncode, "none of that name was set" in again.stderr) == (1, True)


def test_aliases_of_operator_files_stay_theirs(mill):
    (mill.folder / "names.yaml").write_text("aliases: {fast: {targets: {v1: 1}}}\n", "utf-8")
    assert mill.moulin("apply", "names.yaml", "--yes").returncode == 0
    taken = mill.moulin("alias", "set", "fast", "v2")
    assert (taken.returncode, "managed by names.yaml" in taken.stderr) == (1, True)
    wrong = mill.moulin("alias", "set", "slow", "v1=0")
    assert (wrong.returncode, "no target has a weight" in wrong.stderr) == (1, True)
    attic = mill.moulin("alias", "set", "slow", "v1", "--for", "attic")
    assert "there is no project 'attic'" in attic.stderr
    assert targets(mill)["fast"] == {"v1": 1}
    assert "slow" not in targets(mill)
