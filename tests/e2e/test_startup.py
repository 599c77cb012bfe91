"""`moulin up` on an empty directory: what it says, what runs, and that `down` leaves nothing."""

import argparse
import stat
from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks._crash_census import own_processes, step_processes
from benchmarks._moulin import rss_mb, up


@pytest.mark.timeout(300)
def test_up_says_where_everything_is_and_down_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with up(data) as running:
        facts = running.facts
        assert set(facts) >= {
            "control_url", "gateway_url", "console_url", "credentials_file", "data_dir", "pid",
        }  # fmt: skip
        assert running.is_whole()
        assert stat.S_IMODE(Path(facts["credentials_file"]).stat().st_mode) == 0o600
        modules = own_processes(data)
        assert modules[facts["pid"]] == "moulin.app.supervisor"
        assert modules[facts["control_pid"]] == "moulin.app.control"
        assert modules[facts["gateway_pid"]] == "moulin.gateway"
        shim = startup.start_idle_task(running)
        assert shim in step_processes(data / "spool")
        assert 0 < rss_mb(shim) < rss_mb(facts["control_pid"])
    assert own_processes(data) == {}
    assert step_processes(data / "spool") == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_benchmark_gives_every_figure() -> None:
    options = argparse.Namespace(rounds=1, settle=0.1, skip_install=True)
    result = startup.run(options)
    assert result["base_install_s"] is None
    names = ("up_ready_s", "control_rss_mb", "gateway_rss_mb", "shim_rss_mb")
    assert all(result[name] > 0 for name in names)
