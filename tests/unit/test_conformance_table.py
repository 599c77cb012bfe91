"""The table of the engines' suite shows what passed, what failed and what was not asked."""

from tests.conformance.table import tabulate

PLACES = {
    "a": ("exit codes", "local"),
    "b": ("exit codes", "local"),
    "c": ("exit codes", "slurm"),
    "d": ("signals", "slurm"),
}


def test_every_cell_says_how_it_stands():
    said = {"a": "passed", "b": "failed", "c": "passed"}
    assert tabulate(PLACES, said).splitlines() == [
        "| behaviour  | local      | Slurm                   |",
        "| ---------- | ---------- | ----------------------- |",
        "| exit codes | 1/2 FAILED | 1/1                     |",
        "| signals    | -          | 0/1, others did not run |",
    ]
