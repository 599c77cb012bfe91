"""What a check of a Slurm pool says of what it was told, in words."""

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.domain.finding import Verdict
from moulin.engines.slurm.checks import (
    check_accounting,
    check_commands,
    check_directory,
    check_submission,
    clear,
    judge_clock,
    judge_nodes,
    judge_rights,
)
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.formats import SlurmNode, SlurmPartition
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import Answer
from moulin.engines.slurm.trial import Trial, Way, judge_control, judge_images, trial_job
from moulin.engines.task.probe import format_found

CONFIG = """\
AccountingStorageType   = accounting_storage/{kind}
AccountingStorageEnforce = {enforced}
MinJobAge               = 300 sec
"""


class Says:
    """Answers commands by their first words; one that it does not know fails."""

    def __init__(self, *answers):
        self.answers = answers

    def run(self, command, *, stdin=b""):
        line = " ".join(command)
        for begin, output in self.answers:
            if line.startswith(begin):
                if isinstance(output, Exception):
                    raise output
                return output if isinstance(output, Answer) else Answer(0, output.encode(), "")
        return Answer(1, b"", "connection refused")

    def talking(self, command, *, is_terminal):
        raise NotImplementedError


def settings(tmp_path, **more):
    return SlurmSettings(directory=tmp_path, **more)


@pytest.mark.parametrize(
    ("told_s", "verdict", "words"),
    [
        (101.0, "ok", "n1 agrees with this machine, to within 2 s"),
        (106.9, "ok", "n1 agrees"),
        (108.0, "problem", "n1 is at least 6 s ahead of this machine"),
        (90.0, "problem", "n1 is at least 10 s behind this machine"),
    ],
)
def test_a_clock_is_wrong_only_when_that_is_certain(told_s, verdict, words):
    found = judge_clock("clock", "n1", (100.0, 102.0), told_s)
    assert (found.verdict, words in found.message) == (verdict, True)


def test_nodes_that_take_no_jobs_are_named_with_why():
    partition = SlurmPartition(name="gpu")
    up = SlurmNode(name="n1", flags=frozenset({"idle"}), accelerators=4)
    down = SlurmNode(name="n2", flags=frozenset({"down", "drain"}), reason="fan", accelerators=4)
    some = judge_nodes(partition, [up, down])
    assert (some.verdict, some.message) == ("ok", "1 of 2 take jobs; 8 GPUs in all; not n2 (fan)")
    none = judge_nodes(partition, [down] * 8)
    assert (none.verdict, none.message.startswith("0 of 8 take jobs")) == ("problem", True)
    assert none.message.endswith("and 3 more")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"AllowGroups": "ALL", "AllowAccounts": "ALL", "AllowQos": "ALL"}, "everybody"),
        ({"AllowGroups": "staff", "AllowQos": "long"}, "groups staff; QoS long"),
        ({"AllowAccounts": "ALL", "DenyAccounts": "guests"}, "not accounts guests"),
        ({"AllowAccounts": "ml", "DenyAccounts": "guests"}, "accounts ml"),
        ({"RootOnly": "YES"}, "root alone"),
    ],
)
def test_who_may_submit(fields, words):
    assert judge_rights(fields).message == words


@pytest.mark.parametrize(
    ("kind", "enforced", "is_mirrored", "verdict", "words"),
    [
        ("none", "none", False, "ok", "(after 300 sec)"),
        ("none", "none", True, "problem", "no accounts to mirror"),
        ("slurmdbd", "associations,limits", True, "ok", "slurmdbd answers; enforced: associations"),
        ("slurmdbd", "none", True, "problem", "holds nobody to the mirror's limits"),
        ("slurmdbd", "none", False, "ok", "slurmdbd answers; enforced: none"),
    ],
)
def test_accounting(tmp_path, kind, enforced, is_mirrored, verdict, words):
    says = Says(
        ("scontrol show config", CONFIG.format(kind=kind, enforced=enforced)),
        ("sacctmgr", "mill"),
    )
    found = check_accounting(says, settings(tmp_path, is_mirrored=is_mirrored))
    assert (found.verdict, words in found.message) == (verdict, True), found


def test_accounting_that_is_set_and_silent(tmp_path):
    says = Says(("scontrol", CONFIG.format(kind="slurmdbd", enforced="none")))
    found = check_accounting(says, settings(tmp_path))
    assert (found.verdict, "connection refused" in found.message) == (Verdict.PROBLEM, True)
    silent = Says(("scontrol", EngineUnavailable("no answer in 20 s", hint="later")))
    assert check_accounting(silent, settings(tmp_path)).verdict is Verdict.UNKNOWN


def test_commands_that_are_missing_are_named_with_where():
    found = check_commands(Says(("sh -c", "squeue\nscancel\n")), "login1")
    assert [each.message for each in found] == ["squeue, scancel not found on login1, over SSH"]
    assert "`bin`" in found[0].hint
    away = Says(("sh -c", EngineUnavailable("run sh over SSH: no route", hint="try it by hand")))
    assert [each.verdict for each in check_commands(away, "login1")] == [Verdict.PROBLEM]


def test_what_slurm_would_refuse_is_said_in_its_words(tmp_path):
    job = trial_job(settings(tmp_path, qos="long", account="ml"), "ml")
    words = "sbatch: error: Batch job submission failed: Invalid qos specification"
    found = check_submission(Says(("sbatch", Answer(1, b"", words))), job)
    assert found.message == (
        "Slurm refuses a small job with account ml, QoS long:"
        " Batch job submission failed: Invalid qos specification"
    )
    for using in ("using", "a using"):  # the second from 26.05 on
        start = f"sbatch: Job 4 to start at 2026-11-23T08:00:00 {using} 1 processors on nodes n1"
        found = check_submission(Says(("sbatch", Answer(0, b"", start))), job)
        assert found.message.endswith("QoS long; it would start at 2026-11-23T08:00:00")


@pytest.mark.parametrize("none", ["accounting_storage/none", "(null)"])
def test_a_slurm_without_accounting_is_fine_until_it_is_to_mirror(tmp_path, none):
    config = ("scontrol", f"AccountingStorageType   = {none}\nMinJobAge               = 30 sec\n")
    found = check_accounting(Says(config), settings(tmp_path))
    assert (found.verdict, "no slurmdbd" in found.message) == (Verdict.OK, True)
    found = check_accounting(Says(config), settings(tmp_path, is_mirrored=True))
    assert found.verdict is Verdict.PROBLEM


@pytest.mark.parametrize(
    ("wanted", "tool", "verdict", "words"),
    [
        ("", "/usr/bin/apptainer", "ok", "/usr/bin/apptainer runs them on n1"),
        ("", "", "ok", "jobs with an `image` are refused"),
        ("pyxis", "", "problem", "pyxis is not on n1"),
    ],
)
def test_images(wanted, tool, verdict, words):
    found = judge_images(wanted, {"node": "n1", "tool": tool})
    assert (found.verdict, words in found.message) == (verdict, True)


def test_a_node_that_reaches_the_control_plane(tmp_path):
    assert list(judge_control(settings(tmp_path), {"node": "n1", "trouble": ""})) == []
    asked = settings(tmp_path, control_url="https://moulin:8080")
    (found,) = judge_control(asked, {"node": "n1", "trouble": ""})
    assert (found.verdict, found.message) == (Verdict.OK, "n1 reaches https://moulin:8080")


def test_what_a_node_says_is_one_line_each():
    assert (
        format_found({"trouble": "a\nb", "long": "x" * 999}) == f"trouble a b\nlong {'x' * 200}\n"
    )


class Lost(Commands):
    """A Slurm that took a job, and whose answer was lost."""

    def __init__(self):
        super().__init__(Says())
        self.cancelled = []

    def nodes(self):
        return ()

    def submit(self, job):
        self.name = job.name
        raise EngineUnavailable("submit the job: no answer in 20 s", hint="it is tried again")

    def find(self, name):
        return ((7, ""),) if name == self.name else ()

    def cancel(self, jobs):
        self.cancelled += jobs


def test_a_job_whose_submission_was_not_answered_is_cancelled_by_its_name(tmp_path):
    client, folder = Lost(), tmp_path / ".check"
    folder.mkdir()
    way = Way("from here", is_wanted=False, lead=lambda h, p: (h, p), why=lambda h, p: "")
    trial = Trial(client, settings(tmp_path), trial_job(settings(tmp_path), ""), folder, way)
    (found,) = trial.findings(1.0, print)
    assert (found.name, found.verdict) == ("job", Verdict.UNKNOWN)
    assert client.cancelled == ["7"]


def test_a_folder_that_was_not_there_is_gone_again(tmp_path):
    directory = tmp_path / "not" / "yet"
    found, made = check_directory(directory, is_far=False)
    assert (found.verdict, (made[0] / "here").exists()) == (Verdict.OK, True)
    (directory / "spool").touch()
    clear(made)
    assert [each.name for each in directory.iterdir()] == ["spool"]
    (directory / "spool").unlink()
    clear(made)
    assert list(tmp_path.iterdir()) == []
