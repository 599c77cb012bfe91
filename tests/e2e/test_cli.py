"""Every command against a running Moulin: what people read, what programs read, how it ends."""

import json
import re
import signal

import httpx
import pytest

JOB = """
name: brief
run: |
  echo "rank $NODE_RANK of $WORLD_SIZE"
resources: {cpus: 1, memory: 100MB}
time_limit: 1m
"""


def plain(text):
    """Put a word in the place of everything that differs from run to run."""
    for pattern, word in (
        (r"\b(?:job|end|key)_[0-9A-Z]{26}\b", "ID"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME"),
        (r" \(\+[\d.]+s\)", ""),
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"[\d.]+ (?:€|W|kJ|J|mJ|GB|MB)", "AMOUNT"),
        (r"[ \t─]+", " "),
    ):
        text = re.sub(pattern, word, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_status(mill):
    found = plain(mill.moulin("status").stdout)
    assert found[0].startswith("Moulin 0.1.0 at http://ADDRESS; workloads: ")
    assert found[1:3] == [
        "zone state site country known nodes power held",
        "local open this-site FR asserted by the operator 1 AMOUNT",
    ]
    assert found[3].startswith("node zone engine class")
    assert found[4].startswith("this-machine-0 local local this-machine")
    heads = found.index("project organisation budget spent reserved")
    assert "default default none AMOUNT AMOUNT" in found[heads + 1 :]


def test_a_command_and_its_output(mill):
    done = mill.moulin("run", "--follow", "--name", "three", "--", "sh", "-c", "echo a; exit 3")
    assert done.stdout == "a\n"
    assert done.returncode == 3
    assert "the program ended with exit code 3 on attempt 1" in done.stderr
    assert plain(mill.moulin("why", "three").stdout) == [
        "ID three is failed",
        "the program ended with exit code 3 on attempt 1",
        "submit TIME -> eligible TIME -> start TIME -> end TIME",
    ]
    assert mill.moulin("logs", "three").stdout == "a\n"
    assert mill.json("logs", "three")["text"] == "a\n"
    reason = mill.json("why", "three")["reasons"][0]
    assert reason["code"] == "ProgramFailed"
    assert reason["parameters"]["generation"] == "1"


def test_words_after_the_dashes_are_not_ours(mill):
    done = mill.moulin("run", "-f", "--", "echo", "--json", "--help", "-f")
    assert done.stdout == "--json --help -f\n"


def test_a_job_file(mill):
    (mill.folder / "job.yaml").write_text(JOB, "utf-8")
    done = mill.moulin("run", "job.yaml", "--follow", "--env", "WORLD_SIZE=7")
    assert (done.returncode, done.stdout) == (0, "rank 0 of 7\n"), done.stderr
    view = mill.json("run", "job.yaml", "--priority", "3")
    assert (view["name"], view["spec"]["priority"], view["spec"]["managed_by"]) == (
        "brief",
        3,
        "job.yaml",
    )


def test_a_dry_run_says_where_when_and_for_how_much(mill):
    done = mill.moulin("run", "--dry-run", "--time-limit", "30m", "--", "true")
    assert done.returncode == 0
    assert plain(done.stdout) == [
        "true would start now on this-machine-0",
        "zone local",
        "time limit 30m0s",
        "price at most AMOUNT",
        "energy at most about AMOUNT (an estimate)",
    ]
    trial = mill.json("run", "--dry-run", "--", "true")
    assert trial["is_possible"]
    assert trial["nodes"] == ["this-machine-0"]
    assert int(trial["reserved_neur"]) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--country", "SE"), "only SE may be used, and zone local is in FR"),
        (("--zone", "mars"), "there is no zone mars; zones: local"),
        (("--cpus", "1000"), "each task needs"),
        (("--nodes", "50"), "50 nodes are needed at once"),
        (("--accelerators", "B300:8"), "no permitted node has"),
    ],
    ids=range(5),
)
def test_what_can_never_run(mill, words, message):
    dry = mill.moulin("run", "--dry-run", *words, "--", "true")
    assert dry.returncode == 1
    assert message in dry.stdout
    done = mill.moulin("run", *words, "--", "true")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_an_error_for_programs(mill):
    done = mill.moulin("run", "--json", "--country", "SE", "--", "true")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "refused"
    assert error["details"]["reasons"][0]["code"] == "JurisdictionForbids"


def test_ctrl_c_while_following_detaches(mill):
    process = mill.begin("run", "--follow", "--name", "long", "--", "sh", "-c", "echo on; sleep 99")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert b"long goes on" in err
    assert mill.json("why", "long")["state"] == "running"
    done = mill.moulin("stop", "long")
    assert plain(done.stdout) == ["ID long cancelled"]
    assert plain(mill.moulin("stop", "long").stdout) == ["ID long had already ended: cancelled"]


def test_jobs_and_the_words_that_mean_one(mill):
    first = mill.json("run", "--name", "twin", "--label", "team=a", "--", "sleep", "60")
    second = mill.json("run", "--name", "twin", "--", "sleep", "60")
    ambiguous = mill.moulin("why", "twin")
    assert ambiguous.returncode == 1
    assert first["id"] in ambiguous.stderr
    assert mill.json("why", first["id"][:-1])["id"] == first["id"]
    assert mill.moulin("why", "job_").returncode == 1
    labelled = mill.json("jobs", "--label", "team=a")["items"]
    assert [view["id"] for view in labelled] == [first["id"]]
    live = {view["id"] for view in mill.json("jobs", "--live", "--kind", "job")["items"]}
    assert {first["id"], second["id"]} <= live
    for view in (first, second):
        mill.json("stop", view["id"])
    states = {v["state"] for v in mill.json("jobs", "--state", "cancelled")["items"]}
    assert states == {"cancelled"}
    heads = plain(mill.moulin("jobs", "--limit", "1").stdout)[0]
    assert heads == "id name kind state submitted ran spent"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("jobs", "--state", "runing"), "'runing'", "did you mean running?"),
        (("jobs", "--kind", "jop"), "'jop'", "did you mean job?"),
        (("jobs", "--label", "team"), "it has no =", "NAME=VALUE"),
        (("why", "nothing-like-it"), "there is none", ""),
        (("logs", "job_" + "0" * 26), "", ""),
        (("run", "echo", "hi"), "neither a .yaml file", "moulin run -- echo hi"),
        (("run",), "run nothing", "moulin run -- COMMAND"),
        (("deploy", "smolm2-135m-instruct"), "smolm2", "did you mean smollm2-135m-instruct"),
        (("deploy", "x", "--source", "ftp"), "'ftp'", "use auto, hf, pypi, file:PATH"),
        (("deploy", "file:absent.gguf"), "there is no such file", "check the path"),
        (("chat",), "none is served", "moulin deploy"),
        (("keys", "create", "k", "--role", "boss"), "'boss'", "known here"),
        (("keys", "revoke", "nobody"), "no such key", "moulin keys list"),
        (("receipt", "show", "rcp_nothing"), "", ""),
        (("receipt", "verify", "absent", "--key", "absent"), "there is no absent", ""),
        (("apply", "absent.yaml"), "absent.yaml", ""),
    ],
    ids=range(16),
)
def test_what_cannot_be_meant(mill, words, message, hint):
    done = mill.moulin(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert hint in done.stderr


@pytest.mark.parametrize(
    "words", [("nope",), ("run", "--nope"), ("jobs", "--limit", "x"), ("why",)]
)
def test_words_that_make_no_command(mill, words):
    done = mill.moulin(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "--help`" in done.stderr


def test_an_operator_file_is_shown_applied_and_then_true(mill):
    path = mill.folder / "lab.yaml"
    path.write_text(
        "organisations: {lab: {}}\nprojects: {lab: {organisation: lab, budget: 1}}\n", "utf-8"
    )
    dry = mill.moulin("apply", "lab.yaml", "--dry-run")
    assert plain(dry.stdout) == ["create organisation lab", "create project lab"]
    unsure = mill.moulin("apply", "lab.yaml")
    assert unsure.returncode == 1
    assert "--yes" in unsure.stderr
    assert len(mill.json("apply", "lab.yaml", "--yes")["diffs"]) == 2
    again = mill.moulin("apply", "lab.yaml", "--yes")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to change" in again.stderr
    path.write_text(path.read_text("utf-8").replace("budget: 1", "budget: 2.5"), "utf-8")
    changed = mill.moulin("apply", "lab.yaml", "--yes")
    assert plain(changed.stdout) == [
        "update project lab",
        "budget_neur: 1000000000 -> 2500000000",
    ]
    path.write_text("{projects: {}}", "utf-8")
    assert {d["action"] for d in mill.json("apply", "lab.yaml", "--yes")["diffs"]} == {"delete"}


def test_a_wrong_operator_file_changes_nothing(mill):
    before = mill.json("status")["sequence"]
    (mill.folder / "wrong.yaml").write_text("zones: {z: {site: this-sit}}\n", "utf-8")
    done = mill.moulin("apply", "wrong.yaml", "--yes")
    assert done.returncode == 1
    assert "zones.z.site: there is no site 'this-sit'" in done.stderr
    assert "did you mean this-site?" in done.stderr
    assert mill.json("status")["balances"]
    assert mill.json("status")["sequence"] >= before


def test_keys_are_shown_once(mill):
    issued = mill.json("keys", "create", "laptop", "--role", "viewer", "--expires-in", "1h")
    assert issued["secret"].startswith("mk_")
    shown = mill.moulin("keys", "list").stdout
    assert "laptop" in shown
    assert issued["secret"] not in shown
    done = mill.moulin("keys", "revoke", "laptop")
    assert plain(done.stdout) == ["ID laptop is revoked"]
    states = {key["name"]: key["revoked_at"] for key in mill.json("keys", "list")["items"]}
    assert states["laptop"] is not None


def test_a_key_calls_models_from_the_moment_it_is_shown_until_it_is_revoked(mill):
    gateway = json.loads((mill.data / "credentials.json").read_text("utf-8"))["gateway_url"]

    def ask(secret):
        headers = {"authorization": f"Bearer {secret}"}
        url = f"{gateway.removesuffix('/v1')}/v1/models"
        return httpx.get(url, headers=headers, trust_env=False).status_code

    for number in range(5):
        issued = mill.json("keys", "create", f"caller-{number}", "--role", "inference")
        assert (issued["is_in_force"], ask(issued["secret"])) == (True, 200)
        assert mill.moulin("keys", "revoke", issued["key"]["id"]).returncode == 0
        assert ask(issued["secret"]) == 401


def test_usage_and_receipts_that_verify(mill):
    view = mill.json("run", "--name", "metered", "--", "sh", "-c", "sleep 1.5")
    mill.until(lambda: mill.json("why", view["id"])["state"] == "succeeded")
    mill.until(lambda: mill.json("receipt", "list", "--workload", view["id"])["items"])
    receipt = mill.json("receipt", "list", "--workload", view["id"])["items"][0]["id"]
    report = mill.json("usage")
    assert view["id"] in {each["workload"] for each in report["items"]}
    assert "metered" in mill.moulin("usage").stdout
    shown = mill.moulin("receipt", "show", receipt).stdout
    assert "FR, asserted by the operator" in shown
    saved = mill.folder / "receipt.json"
    mill.until(lambda: mill.moulin("receipt", "save", receipt, str(saved)).returncode == 0)
    mill.json("receipt", "key", "factory.pub")
    verify = ("receipt", "verify", "receipt.json", "--key", "factory.pub")
    good = mill.moulin(*verify)
    assert (good.returncode, good.stdout[:3]) == (0, "OK:")
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    bad = mill.moulin(*verify)
    assert (bad.returncode, bad.stdout[:7]) == (1, "FAILED:")


def test_models_are_listed_with_their_licence(mill):
    shown = mill.moulin("models").stdout
    assert "smollm2-135m-instruct" in shown
    assert "Apache-2.0" in shown


def test_doctor_says_what_is_right(mill):
    report = mill.json("doctor", "--offline")
    assert report["ok"]
    assert {check["name"] for check in report["checks"]} >= {"python", "disk", "control port"}
    assert plain(mill.moulin("doctor", "--offline").stdout)[0].startswith("ok python: Python 3.")


def test_settings_and_their_origins(mill):
    report = mill.json("config", "show")
    assert report["control_port"] == {"value": 8700, "origin": "default"}
    assert mill.json("version")["version"] == "0.1.0"
    assert mill.moulin("--version").stdout == "moulin 0.1.0\n"


def test_output_for_pipes_has_no_colour_and_is_whole(mill):
    for words in (("status",), ("jobs",), ("models",), ("keys", "list"), ("usage",)):
        done = mill.moulin(*words)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout + done.stderr
        assert "…" not in done.stdout


def test_where_nothing_runs(shell):
    done = shell.moulin("status")
    assert done.returncode == 1
    assert "moulin up" in done.stderr
