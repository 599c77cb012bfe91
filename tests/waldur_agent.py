"""Waldur's own site agent in an environment of its own, with our backend beside it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real_model import cache_directory

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "waldur.txt"
BRIDGE = ROOT / "bridges" / "waldur" / "src"
DRIVE = ROOT / "tests" / "integration" / "bridges" / "waldur_drive.py"
ENTRY = "[waldur_site_agent.backends]\nmoulin = moulin_waldur.backend:MoulinBackend\n"


class Agent:
    """Runs passes of the agent; `plugins` holds what an installation of our backend would leave."""

    def __init__(self, python: Path, plugins: Path) -> None:
        self.python = python
        self.plugins = plugins
        found = plugins / "moulin_waldur-0.1.0.dist-info"
        found.mkdir()
        (found / "entry_points.txt").write_text(ENTRY)
        (found / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: moulin-waldur\nVersion: 0.1.0\n"
        )

    def run(self, configuration: Path, which: str) -> str:
        """Run one pass and return what the agent logged."""
        done = subprocess.run(
            [str(self.python), str(DRIVE), str(configuration), which],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{BRIDGE}:{self.plugins}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def waldur_agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """Install the agent once for each of its locks; later sessions find it."""
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache_directory() / f"waldur-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        uv = [sys.executable, "-m", "uv"]
        make = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        subprocess.run(make, check=True)
        words = ["pip", "install", "--quiet", "--require-hashes", "--python", str(python), "-r"]
        subprocess.run([*uv, *words, str(LOCK)], check=True)
        (folder / "complete").touch()
    return Agent(python, tmp_path_factory.mktemp("plugins"))
