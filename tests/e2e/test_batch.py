"""Arrays, dependencies, holds, stops of many and checkpoints as people meet them, on this machine."""

JOB = """
name: resumes
retry: {{attempts: 3, backoff: 0s}}
stop_signal: USR1
grace: 20s
run: |
  {script}
resources: {{cpus: 0.2, memory: 100MB}}
time_limit: 2m
"""
RESUMES = """
  echo "try $MOULIN_RESTART_COUNT finds $(cat $MOULIN_CHECKPOINT_DIR/step 2>/dev/null || echo nothing)"
  echo "step $MOULIN_RESTART_COUNT" > $MOULIN_CHECKPOINT_DIR/step
  test "$MOULIN_RESTART_COUNT" = 2
"""
SAVES = """
  trap 'echo saved; echo last > $MOULIN_CHECKPOINT_DIR/step; exit 0' USR1
  echo ready; while true; do sleep 0.1; done
"""
SMALL = ("--cpus", "0.2", "--memory", "50MB", "--time-limit", "1m")


def test_an_array_is_one_job_with_many_tasks(mill):
    script = "echo i=$MOULIN_ARRAY_INDEX of $MOULIN_ARRAY_SIZE; test $SLURM_ARRAY_TASK_ID != 13"
    words = ("run", "--follow", "--name", "sweep", *SMALL, "--array", "10-14%2")
    done = mill.moulin(*words, "--", "sh", "-c", script)
    assert done.returncode == 1
    assert "of 5 elements 4 succeeded, 1 failed and 0 were cancelled" in done.stderr
    view = mill.json("show", "sweep")
    assert (view["state"], view["counts"]) == ("failed", {"failed": 1, "succeeded": 4})
    assert [unit["index"] for unit in view["units"]] == [10, 11, 12, 13, 14]
    assert mill.moulin("logs", "sweep", "--index", "12").stdout == "i=12 of 5\n"
    shown = mill.moulin("show", "sweep").stdout
    assert "1 failed, 4 succeeded" in shown
    assert "submit " in shown
    assert " -> end " in shown
    refused = mill.moulin("logs", "sweep", "--index", "99")
    assert refused.returncode == 1


def test_a_job_waits_for_others_and_for_its_release(mill):
    first = mill.json("run", "--name", "prepare", "--hold", *SMALL, "--", "true")
    second = mill.json("run", "--name", "train", "--after", "prepare", *SMALL, "--", "true")
    assert second["spec"]["after"] == [{"workload": first["id"], "when": "ok"}]
    assert "it is held" in mill.moulin("why", first["id"]).stdout
    why = mill.json("why", second["id"])
    assert [reason["code"] for reason in why["reasons"]] == ["WaitsFor"]
    assert why["timeline"]["eligible"] is None
    assert mill.json("priority", first["id"], "70")["spec"]["priority"] == 70
    assert mill.moulin("release", first["id"]).returncode == 0
    mill.until(lambda: mill.json("why", second["id"])["state"] == "succeeded")
    course = mill.json("show", second["id"])
    before = mill.json("show", first["id"])
    assert course["eligible_at"] >= before["ended_at"]
    assert course["started_at"] >= course["eligible_at"]


def test_what_depends_on_a_failure_never_starts(mill):
    first = mill.json("run", "--hold", *SMALL, "--", "false")
    second = mill.json("run", "--after", first["id"], *SMALL, "--", "true")
    third = mill.json("run", "--after", f"{first['id']}:any", *SMALL, "--", "true")
    mill.moulin("release", first["id"])
    mill.until(lambda: mill.json("why", third["id"])["state"] == "succeeded")
    found = mill.json("why", second["id"])
    assert (found["state"], found["reasons"][0]["code"]) == ("cancelled", "DependencyFailed")
    refused = mill.moulin("run", "--after", "nothing-like-it", "--", "true")
    assert "never had" in refused.stderr


def test_many_are_stopped_after_a_count(mill):
    ids = {
        mill.json("run", "--hold", "--label", "team=x", *SMALL, "--", "true")["id"]
        for _ in range(3)
    }
    other = mill.json("run", "--hold", "--label", "team=y", *SMALL, "--", "true")["id"]
    asked = mill.moulin("stop", "--label", "team=x", "--state", "queued")
    assert asked.returncode == 1
    assert "stop 3 workload(s)" in asked.stderr
    done = mill.json("stop", "--label", "team=x", "--state", "queued", "--yes")
    assert set(done["workloads"]) == ids
    mill.until(lambda: all(mill.json("why", each)["state"] == "cancelled" for each in ids))
    assert mill.json("why", other)["state"] == "admitted"
    assert mill.moulin("stop", other).returncode == 0
    assert mill.moulin("stop").returncode == 1


def test_what_one_attempt_saved_the_next_finds(mill):
    (mill.folder / "resumes.yaml").write_text(JOB.format(script=RESUMES.strip()), "utf-8")
    done = mill.moulin("run", "resumes.yaml", "--follow", "--name", "resumed")
    assert done.returncode == 0, done.stderr
    assert mill.moulin("logs", "resumed").stdout == "try 2 finds step 1\n"
    assert mill.json("show", "resumed")["units"][0]["restarts"] == 2


def test_a_program_is_asked_to_end_with_the_signal_it_wants(mill):
    (mill.folder / "saves.yaml").write_text(JOB.format(script=SAVES.strip()), "utf-8")
    view = mill.json("run", "saves.yaml", "--name", "saved")
    mill.until(lambda: "ready" in mill.moulin("logs", view["id"]).stdout)
    assert mill.json("stop", view["id"])["state"] == "cancelled"
    # The signal goes to the whole tree, so the shell also says how its `sleep` ended.
    assert mill.moulin("logs", view["id"]).stdout.splitlines()[-1] == "saved"
    task = mill.json("show", view["id"])["units"][0]["tasks"][0]
    assert (task["exit_code"], task["memory_bytes_max"] != 0) == (0, True)
