"""Any folder that can be packed is there again, byte for byte, where it is unpacked."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from moulin.engines.task.beside import unpack
from moulin.sdk._bundle import IGNORED, packed

LETTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="/\0")
NAMES = (
    st.text(LETTERS, min_size=1, max_size=12)
    .filter(lambda name: name not in (".", "..", ".gitignore", ".moulinignore"))
    .filter(lambda name: f"{name}/" not in IGNORED)
)
CONTENTS = st.tuples(st.binary(max_size=200), st.booleans())
TREES = st.recursive(
    st.dictionaries(NAMES, CONTENTS, max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(CONTENTS, inner), max_size=4),
    max_leaves=8,
)


def make(folder: Path, tree: dict) -> None:
    folder.mkdir()
    for name, found in tree.items():
        if isinstance(found, dict):
            make(folder / name, found)
        else:
            (folder / name).write_bytes(found[0])
            (folder / name).chmod(0o755 if found[1] else 0o644)


def read(folder: Path) -> dict:
    return {
        path.name: read(path)
        if path.is_dir()
        else (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        for path in folder.iterdir()
    }


@given(TREES)
def test_what_is_packed_is_unpacked(tree):
    with tempfile.TemporaryDirectory() as place:
        folder, bundle, work = (Path(place, name) for name in ("folder", "bundle", "work"))
        make(folder, tree)
        with packed(folder) as found:
            bundle.write_bytes(found.stream.read())
            wanted = {"path": str(bundle), "sha256": found.sha256}
        work.mkdir()
        unpack(wanted, str(work))
        assert read(work) == tree
