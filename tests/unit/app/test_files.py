"""YAML as people write it: what is understood, and what is refused before anything is built."""

from decimal import Decimal
from pathlib import Path

import pytest

from moulin.app.files import (
    DEPTH_MAX,
    FILE_BYTES_MAX,
    NODES_MAX,
    load_mapping,
    parse_mapping,
    read_factory_file,
    read_job_file,
)
from moulin.domain.errors import InvalidSpec, NotFound
from moulin.domain.factory import Zone, ZoneState

ROOT = Path(__file__).resolve().parents[3]


def parse(text):
    data = text if isinstance(text, bytes) else text.encode()
    return parse_mapping(data, origin="job.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: NO", "NO"),
        ("a: yes", "yes"),
        ("a: true", True),
        ("a: 1:30", "1:30"),
        ("a: 010", 10),
        ("a: 0x10", 16),
        ("a: 0o10", 8),
        ("a: -3", -3),
        ("a: 0.10", Decimal("0.10")),
        ("a: 1e-9", Decimal("1e-9")),
        ("a: 0.123456789012345678901", Decimal("0.123456789012345678901")),
        ("a: 2026-01-01", "2026-01-01"),
        ("a: 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("a:", None),
        ("a: ~", None),
        ('a: "12"', "12"),
        ("a: .inf", ".inf"),
        (f"a: {'9' * 5000}", "9" * 5000),
        ("a: [1, x]", [1, "x"]),
        ("\ufeffa: é", "é"),
        ("x: &n 1\na: *n", 1),
    ],
)
def test_words_of_yaml_1_2(text, value):
    found = parse(text)["a"]
    assert found == value
    assert type(found) is type(value)


def bomb(levels):
    lines = ["l0: &l0 [a, a, a, a, a, a, a, a, a]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


BAD = [
    (b"name: caf\xe9\n", "line 1: byte 0xe9 is not UTF-8", "UTF-8"),
    ("a: 1\n\tb: 2\n", "line 2: a tab where YAML wants spaces", "spaces"),
    ("a:\n\t- 1\n", "a tab where YAML wants spaces", ""),
    ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice", ""),
    ("r:\n  x: 1\n  x: 2\n", "line 3: the key 'x' is given twice", ""),
    ("a: 1\n---\nb: 2\n", "a second document starts here", ""),
    ("", "holds no keys with values", ""),
    ("- a\n", "holds no keys with values", ""),
    ("just text\n", "holds no keys with values", ""),
    ("[1]: 2\n", "a key must be a text", ""),
    ("a: [1, 2\n", "line", ""),
    ("a: b: c\n", "line 1", ""),
    ("a: *nothing\n", "*nothing names nothing", ""),
    ("a: &a [*a]\n", "*a names nothing that is complete", ""),
    (bomb(9), f"unfolds to more than {NODES_MAX:,} values", ""),
    ("a: " + "[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1), f"{DEPTH_MAX} levels", ""),
    ("a: [" + "1," * (NODES_MAX + 1) + "]", "unfolds to more than", ""),
    ("a: !!python/object/apply:os.system [ls]\n", "line 1", ""),
    ("a: !thing x\n", "line 1", ""),
    ("a: \x01\n", "it is not YAML", ""),
]


@pytest.mark.parametrize(("text", "message", "hint"), BAD, ids=range(len(BAD)))
def test_yaml_that_is_refused(text, message, hint):
    with pytest.raises(InvalidSpec) as caught:
        parse(text)
    assert message in caught.value.message
    assert caught.value.message.startswith("read job.yaml: ")
    assert hint in caught.value.hint


def test_a_merge_key_is_an_ordinary_key():
    assert parse("b: &b {x: 1}\na:\n  <<: *b\n")["a"] == {"<<": {"x": 1}}


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(InvalidSpec, match="larger than"):
        load_mapping(path)


@pytest.mark.parametrize("name", ["absent.yaml", ""])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(NotFound):
        load_mapping(tmp_path / name)


def test_a_job_is_named_after_its_file_and_works_beside_it(tmp_path):
    path = tmp_path / "my job.yaml"
    path.write_text("run: ls\nworkdir: code\n", "utf-8")
    spec = read_job_file(path)
    assert spec.name == "my-job"
    assert spec.task is not None
    # Relative to where the command runs: such a folder is sent along.
    assert not Path(spec.task.workdir).is_absolute()
    assert Path(spec.task.workdir).resolve() == (tmp_path / "code").resolve()
    path.write_text("run: ls\nworkdir: /share/code\n", "utf-8")
    placed = read_job_file(path).task
    assert placed is not None
    assert placed.workdir == "/share/code"


def test_the_example_factory_has_three_open_zones_and_one_building():
    objects = read_factory_file(ROOT / "examples" / "07_factory.yaml")
    zones = {each.name: each.state for each in objects if isinstance(each, Zone)}
    assert zones == {
        "fr": ZoneState.OPEN,
        "se": ZoneState.OPEN,
        "it": ZoneState.OPEN,
        "de": ZoneState.BUILDING,
    }


@pytest.mark.parametrize("name", ["01_job.yaml", "02_travail.yaml"])
def test_the_example_jobs_are_right(name):
    spec = read_job_file(ROOT / "examples" / name)
    assert spec.time_limit_s == 300
    assert spec.retry.attempts_max == 2
    assert spec.task is not None
    assert spec.task.env
