"""The pure parts of the shim, and that it stays a bare file."""

import ast
from pathlib import Path

import pytest

from moulin.engines.task import shim
from moulin.engines.task.shim import read_spec


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        (b"", {}),
        (b"argv\0sh\0argv\0-c\0", {b"argv": [b"sh", b"-c"]}),
        (b"cpus\0\0env\0A=\0", {b"cpus": [b""], b"env": [b"A="]}),
        (b"env\0A=line\nline\0", {b"env": [b"A=line\nline"]}),
        (b"argv\0cut", {b"argv": [b"cut"]}),
    ],
)
def test_a_specification_is_read_back(data, spec):
    assert read_spec(data) == spec


def test_the_shim_imports_little_and_nothing_of_moulin():
    tree = ast.parse(Path(shim.__file__).read_text(encoding="utf-8"))
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    assert sorted(names) == ["_signal", "ctypes", "os", "sys", "time"]
    others = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert others == [
        "__future__"
    ]  # so that types are not evaluated, which older Pythons could not
