"""The offline verifier on real files, and its claim to be small and to need nothing else."""

import ast
import io
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from moulin.app.verify import verify_file
from moulin.ledger.verification import FILE_BYTES_MAX

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "receipts"
PATH = ("ledger/proof.py", "ledger/checkpoint.py", "ledger/verification.py", "app/verify.py")
CODE_LINES_MAX = 300


@pytest.mark.parametrize("name", ["request", "job", "free"])
def test_a_golden_receipt_is_proved(name):
    verdict = verify_file(GOLDEN / f"v1_{name}.receipt.json", GOLDEN / "v1.pub")
    assert verdict.ok, verdict.statement
    assert verdict.fields["project"] == "chat"


def test_a_flipped_byte_fails(tmp_path):
    data = bytearray((GOLDEN / "v1_request.receipt.json").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "receipt.json").write_bytes(bytes(data))
    verdict = verify_file(tmp_path / "receipt.json", GOLDEN / "v1.pub")
    assert not verdict.ok
    assert verdict.statement.startswith("FAILED: ")


@pytest.mark.parametrize(
    ("receipt", "key"),
    [
        ("missing", GOLDEN / "v1.pub"),
        (GOLDEN / "v1_job.receipt.json", "missing"),
        (GOLDEN / "v1_job.receipt.json", GOLDEN / "v1_job.receipt.json"),
        (GOLDEN / "v1.pub", GOLDEN / "v1.pub"),
        (GOLDEN, GOLDEN / "v1.pub"),
    ],
    ids=["no receipt", "no key", "a receipt as key", "a key as receipt", "a folder"],
)
def test_what_cannot_be_read_is_not_proved(tmp_path, receipt, key):
    verdict = verify_file(tmp_path / receipt, tmp_path / key)
    assert not verdict.ok
    assert verdict.statement.startswith("FAILED: ")


def test_a_huge_file_is_not_read_whole(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(FILE_BYTES_MAX * 1000)
    assert "larger than any receipt" in verify_file(path, GOLDEN / "v1.pub").statement


def code_lines(path):
    """Count lines that hold code: no blank lines, comments or docstrings."""
    source = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*skipped, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_the_whole_path_is_short_enough_to_read():
    assert sum(code_lines(ROOT / "src" / "moulin" / path) for path in PATH) < CODE_LINES_MAX


def test_the_path_runs_alone_with_no_other_file_of_moulin(tmp_path):
    for path in PATH:
        target = tmp_path / "moulin" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        for package in (target.parent, target.parent.parent):
            (package / "__init__.py").touch()
        shutil.copy(ROOT / "src" / "moulin" / path, target)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\n"
        "from moulin.app.verify import verify_file\n"
        f"found = verify_file(Path({str(GOLDEN / 'v1_job.receipt.json')!r}),"
        f" Path({str(GOLDEN / 'v1.pub')!r}))\n"
        "assert sys.modules['moulin.app.verify'].__file__.startswith(sys.path[0])\n"
        "print(found.statement); sys.exit(not found.ok)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OK: receipt rcp_job_1")
