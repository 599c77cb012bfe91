"""Stock clients of OpenAI and Mistral work unmodified with a whole Moulin and a real model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real_model import cache_directory, smollm2

ROOT = Path(__file__).parents[2]
SERVED = {
    "chat", "stream", "tools", "tools_streamed", "tool_choice_named", "json_schema", "n", "seed",
    "stop", "stream_usage", "models", "errors",
}  # fmt: skip

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]


def test_stock_clients_work_and_what_is_not_served_is_said_to_be() -> None:
    small = Path(smollm2().path).parents[1]
    assert small.is_relative_to(cache_directory())
    command = [sys.executable, "-m", "benchmarks", "clients", "--json", "--no-save"]
    command += ["--client", "openai", "--client", "mistralai", "--models", str(small)]
    command += ["--chat", "smollm2-135m-instruct", "--serve", "smollm2-135m-instruct"]
    environment = {**os.environ, "PYTHONPATH": "src"}
    finished = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert finished.returncode == 0, finished.stderr
    result: dict[str, dict[str, Any]] = json.loads(finished.stdout.splitlines()[-1])
    assert set(result) == {"openai", "mistralai"}
    for verdicts in result.values():
        failed = sorted(feature for feature in verdicts if verdicts[feature] == "fail")
        assert not failed, finished.stderr
        assert {feature: verdicts[feature] for feature in SERVED} == dict.fromkeys(SERVED, "pass")
        # This model cannot fill in, and nothing here speaks.
        assert verdicts["fim"] == verdicts["speech"] == "unsupported"
