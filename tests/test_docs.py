"""The documents tell the truth: what they name exists, what they show can be run, what is generated is current."""

import ast
import doctest
import importlib
import importlib.util
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from scripts import docs

ROOT = Path(__file__).resolve().parent.parent
PURE = (
    "domain", "identity", "policy", "scheduler", "energy", "metering", "ledger", "routing",
    "catalog", "compression", "quantum",
)  # fmt: skip
STEPS_MAX = 9
HEADING = "A job's life"
# Programs a document may show without explanation.
KNOWN_PROGRAMS = {
    "git", "cd", "make", "moulin", "pip", "python", "python3", "curl", "export", "cat", "sudo",
    "apt-get", "ls", "kill", "psql", "sqlite3", "sed", "mkdir", "cp", "uv",
}  # fmt: skip
PLACEHOLDER = re.compile(r"[A-Z][A-Z_0-9]*|\.\.\.|…|<\w+>|\$\w+")


def document(name: str) -> str:
    """The text of a document, or a failure that says what is expected."""
    path = ROOT / name
    assert path.exists(), f"{name} is missing; it is part of the product"
    return path.read_text("utf-8")


def documents() -> list[Path]:
    """Every page a reader may follow."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Fenced code blocks in one of the languages, each with the place it stands at."""
    found = []
    for path in documents():
        text = path.read_text("utf-8")
        for match in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{path.relative_to(ROOT).as_posix()}:{line}", match[2]))
    return found


def section(text: str, heading: str) -> str:
    """The text under the first heading that contains `heading`, up to the next of its level."""
    match = re.search(rf"^(#+)[^\n]*{re.escape(heading)}[^\n]*\n", text, re.MULTILINE)
    assert match, f"no heading with {heading!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


# --- ARCHITECTURE.md ------------------------------------------------------------------------------


def life_of_a_job() -> list[str]:
    text = section(document("ARCHITECTURE.md"), HEADING)
    return re.findall(r"^ ?\d+\. +(.+(?:\n {2,}.+)*)", text, re.MULTILINE)


def test_a_jobs_life_has_at_most_nine_files():
    steps = life_of_a_job()
    assert 1 <= len(steps) <= STEPS_MAX, f"{len(steps)} numbered steps under {HEADING!r}"


def test_each_step_of_a_jobs_life_exists():
    """Each step names one file and, in backticks, at least one symbol that the file defines."""
    for step in life_of_a_job():
        quoted = re.findall(r"`([^`]+)`", step)
        files = [q for q in quoted if q.endswith(".py")]
        assert len(files) == 1, f"one file in backticks per step: {step!r}"
        path = next(
            (p for p in (ROOT / files[0], ROOT / "src" / "moulin" / files[0]) if p.is_file()), None
        )
        assert path, f"{files[0]} does not exist"
        symbols = [q.removesuffix("()") for q in quoted if q != files[0]]
        symbols = [s for s in symbols if re.fullmatch(r"[A-Za-z_][\w.]*", s)]
        assert symbols, f"name the function to read in {files[0]}"
        missing = [s for s in symbols if s not in defined_in(path)]
        assert not missing, f"{files[0]} defines no {', '.join(missing)}"


def defined_in(path: Path) -> set[str]:
    """Functions, classes, `Class.method`s and module constants of a file."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name):
                inner = [
                    m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
                names |= {name, *(m.name for m in inner), *(f"{name}.{m.name}" for m in inner)}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def test_architecture_is_short():
    assert document("ARCHITECTURE.md").count("\n") <= 250


# --- generated pages ------------------------------------------------------------------------------


def test_reference_is_current():
    assert not docs.stale(), "run `make docs` and commit docs/reference"


def test_each_error_is_documented_and_has_a_code_of_its_own():
    from moulin.domain.errors import all_errors

    errors = [e for e in all_errors() if e.__module__ == "moulin.domain.errors"]
    page = document("docs/reference/errors.md")
    assert [e.__name__ for e in errors if f"`{e.code}`" not in page] == []
    assert len({e.code for e in errors}) == len(errors)


@cache
def commands() -> dict[tuple[str, ...], set[str]]:
    """Each command of the CLI with its option names."""
    root = docs.command_tree()
    assert root is not None, "moulin.cli.main must define `app`, a typer.Typer"
    return {
        path: {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
        for path, command in docs.walk_commands(root)
    }


def test_each_command_is_documented_and_has_json():
    page = document("docs/reference/commands.md")
    assert [" ".join(c) for c in commands() if f"## moulin {' '.join(c)}\n" not in page] == []
    groups = {path[:-1] for path in commands()}
    leaves = {path: options for path, options in commands().items() if path not in groups}
    assert [" ".join(c) for c, options in leaves.items() if "--json" not in options] == []


# --- what documents show --------------------------------------------------------------------------


def shell_lines() -> list[tuple[str, str]]:
    """Each command line of a shell block, prompt removed and continuations joined."""
    lines = []
    for place, text in blocks("sh", "bash", "shell", "console"):
        shows_output = bool(re.search(r"^\$ ", text, re.MULTILINE))
        for raw in text.replace("\\\n", " ").splitlines():
            line = raw.strip()
            if shows_output and not line.startswith("$ "):
                continue  # output below a prompt
            line = line.removeprefix("$ ")
            if line and not line.startswith("#"):
                lines.append((place, line))
    return lines


def simple_commands(line: str) -> list[list[str]]:
    """Words of each simple command in a line; assignments in front and redirections dropped."""
    parts: list[list[str]] = [[]]
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
    lexer.whitespace_split = True
    for word in lexer:
        if set(word) <= set(";|&"):
            parts.append([])
        elif parts[-1] or not re.fullmatch(r"\w+=.*", word):
            parts[-1].append(word)
    return [part for part in parts if part]


def check_moulin(words: list[str]) -> str:
    path: tuple[str, ...] = ()
    rest = words[1:]
    while rest and (*path, rest[0]) in commands():
        path, rest = (*path, rest[0]), rest[1:]
    if not path:
        is_root_option = all(word.startswith("-") for word in rest)
        return "" if is_root_option else f"no command {' '.join(words[:2])}"
    if "--" in rest:
        rest = rest[: rest.index("--")]
    options = [word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    unknown = [option for option in options if option not in commands()[path]]
    return f"moulin {' '.join(path)} has no {', '.join(unknown)}" if unknown else ""


def check_make(words: list[str]) -> str:
    targets = set(re.findall(r"^([a-z]+):", document("Makefile"), re.MULTILINE))
    asked = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
    unknown = [word for word in asked if word not in targets]
    return f"the Makefile has no {', '.join(unknown)}" if unknown else ""


def check_python(words: list[str]) -> str:
    match words[1:]:
        case ["-m", ("benchmarks" | "tests.simulation") as module, *arguments]:
            name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
            is_there = importlib.util.find_spec(module) is not None
            if module == "benchmarks" and name and not PLACEHOLDER.fullmatch(name):
                is_there = is_there and bool(list((ROOT / "benchmarks").glob(f"{name}*")))
            return "" if is_there else f"no {module} {name}"
        case [script, *_] if script.endswith(".py"):
            return "" if (ROOT / script).exists() else f"{script} does not exist"
    return ""


def problem_with(line: str) -> str:
    """What is wrong with a shown command line, "" when nothing is."""
    for words in simple_commands(line):
        program = words[0]
        local = ROOT / program
        name = program.rsplit("/", 1)[-1]
        if program.startswith((".venv/", "~")) or "/" not in program:
            if name not in KNOWN_PROGRAMS:
                return f"unknown program {program}"
        elif not local.exists():
            return f"{program} does not exist"
        check = {"moulin": check_moulin, "make": check_make}.get(name)
        if name.startswith("python"):
            check = check_python
        if check and (found := check(words)):
            return found
    return ""


def test_shown_commands_exist():
    found = [
        f"{place}: {problem_with(line)}: {line}"
        for place, line in shell_lines()
        if problem_with(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    ["make nothing", "frobnicate x", "scripts/absent.sh", "python -m benchmarks absent --json"],
)
def test_wrong_commands_are_noticed(line):
    assert problem_with(line)


@pytest.mark.parametrize(
    "line", ["make demo DOCS=texts", "cd moulin && git status", "A=1 make test"]
)
def test_right_commands_pass(line):
    assert not problem_with(line)


def test_wrong_moulin_commands_are_noticed():
    assert problem_with("moulin frobnicate")
    assert problem_with("moulin up --frobnicate")
    assert not problem_with("moulin up --help")
    assert not problem_with("moulin run --json -- echo --frobnicate")


def test_shown_data_parses():
    for place, text in blocks("python"):
        compile(text, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for place, text in blocks("yaml"):
        assert list(yaml.safe_load_all(text)), place
    for place, text in blocks("json"):
        assert json.loads(text) is not None, place


def test_links_between_documents_lead_somewhere():
    broken = []
    for path in documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
            if "://" in target or target.startswith(("#", "mailto:")):
                continue
            if not (path.parent / target.split("#")[0]).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


def test_readme_says_what_is_proven():
    """The honesty matrix: what is proven, replayed, simulated or untested."""
    text = document("README.md").lower()
    for word in ("proven", "replayed", "simulated", "untested", "untested against the live hub"):
        assert word in text, f"README.md does not say {word!r}"


def test_decisions_are_numbered_and_dated():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [page.name[:4] for page in pages]
    assert numbers == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text("utf-8")
        for word in ("Status:", "Date:", "## Context", "## Decision", "## Consequences"):
            assert word in text, f"{page.name} has no {word!r}"


def test_examples_in_docstrings_are_right():
    failures = []
    for package in PURE:
        for path in sorted((ROOT / "src" / "moulin" / package).rglob("*.py")):
            if ">>> " in path.read_text("utf-8"):
                name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
                result = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
                failures += [name] * result.failed
    assert not failures
