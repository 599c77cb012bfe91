"""Do the stock clients people have work unmodified, feature by feature, against a real model?

`moulin up` serves a model of the catalogue; `openai`, `mistralai`, `huggingface_hub`, `litellm` (as
a client) and `langchain-openai`, in an environment of their own, do with it what they can do. A
feature passes when the client took the answer and the answer was right; it is unsupported when
Moulin says that it does not have it; everything else is a failure. What a client cannot do is not
listed. `--serve NAME` adds models for embeddings, transcripts and speech; without one those
features are unsupported.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._moulin import Running, moulin_command, up
from moulin.app.down import operator_credentials
from moulin.catalog.entries import MODELS
from moulin.domain.control import KeyWanted
from moulin.domain.limits import RateLimit
from moulin.domain.model import Ability
from moulin.domain.principal import Role
from moulin.sdk import Moulin

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements" / "clients.txt"
CLIENTS = ("openai", "mistralai", "huggingface_hub", "litellm", "langchain_openai")
CHAT = "qwen2.5-coder-0.5b-instruct"
MEDIA = ("all-minilm-l6-v2", "whisper-base", "piper-en-us-joe")
FIELD_BY_ABILITY = {
    Ability.GENERATE: "chat",
    Ability.EMBED: "embed",
    Ability.TRANSCRIBE: "transcribe",
    Ability.SPEAK: "speak",
}
# All of them fit on a machine with two.
CPUS = "0.5"
DEPLOY_S_MAX = 900.0
CLIENT_S_MAX = 1800.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which clients, and what is served to them."""
    parser.add_argument("--client", action="append", choices=CLIENTS, help="only this one")
    parser.add_argument("--chat", default=CHAT, help="model of the catalogue for chats")
    parser.add_argument("--serve", action="append", help="model for other things (all packaged)")
    parser.add_argument("--models", type=Path, help="folder with models fetched before")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return `{client: {feature: "pass" | "unsupported" | "fail"}}`; reasons go to stderr."""
    python = environment()
    with tempfile.TemporaryDirectory(prefix="moulin-clients-") as folder:
        data = Path(folder) / "data"
        if options.models is not None:
            data.mkdir(mode=0o700)
            (data / "models").symlink_to(options.models.resolve())
        with up(data) as running:
            settings = serve(running, options.chat, options.serve or MEDIA)
            with operator(running) as factory:
                return {
                    client: drive(python, client, {**settings, **keys(factory, client)})
                    for client in options.client or CLIENTS
                }


def environment() -> Path:
    """Return the Python of the clients' environment, which is made when their lock changed."""
    named = os.environ.get("MOULIN_TEST_CACHE")
    cache = Path(named) if named else Path.home() / ".cache" / "moulin-tests"
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache / f"clients-{digest}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    uv = [sys.executable, "-m", "uv"]
    install = ["pip", "install", "--quiet", "--require-hashes", "--python", str(python), "-r"]
    _tell(f"making the clients' environment in {folder}")
    subprocess.run(
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True
    )
    subprocess.run([*uv, *install, LOCK], check=True)
    (folder / "complete").touch()
    return python


def serve(running: Running, chat: str, others: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Serve the models, and return what the clients have to know."""
    served = {}
    for name in (chat, *others):
        found = deploy(running, name)
        if found:
            served[FIELD_BY_ABILITY[MODELS[name].ability]] = name
        elif name == chat:
            raise SystemExit(f"error: {name} could not be served")
    return {**served, "url": running.gateway_url}


def operator(running: Running) -> Moulin:
    """Return a connection with the operator's key."""
    credentials = operator_credentials(running.data, running.control_url)
    return Moulin(
        control_url=credentials.control_url,
        api_key=credentials.api_key,
        project=credentials.project,
    )


def keys(factory: Moulin, client: str) -> dict[str, str]:
    """Return a client's two keys: one without limits, one that may ask once a minute."""
    rate = RateLimit(requests_per_minute=1)
    free = KeyWanted(name=client, role=Role.MEMBER)
    limited = KeyWanted(name=f"{client}-limited", role=Role.INFERENCE, rate=rate)
    return {
        "key": factory.keys.create(free).secret,
        "limited_key": factory.keys.create(limited).secret,
    }


def deploy(running: Running, name: str) -> bool:
    """Deploy a model as a user does, with its runtime, and say whether it answers."""
    where = ("--data", str(running.data))
    if MODELS[name].ability is not Ability.GENERATE:
        install = moulin_command("runtime", "install", MODELS[name].runtime, *where)
        subprocess.run(install, check=False, stdout=sys.stderr)
    command = moulin_command("deploy", name, "--cpus", CPUS, *where, "--json")
    done = subprocess.run(
        command, timeout=DEPLOY_S_MAX, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        _tell(f"{name} is not served: {done.stderr.strip() or done.stdout.strip()}")
    return done.returncode == 0


def drive(python: Path, client: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Run one client in its environment and return its verdicts."""
    asked = {"settings": settings, "clients": [client]}
    done = subprocess.run(
        [python, "-m", "benchmarks.stock_clients"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        timeout=CLIENT_S_MAX,
        check=True,
        text=True,
        cwd=ROOT,
        env={
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/"),
            "NO_PROXY": "*",
        },
    )
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return {feature: verdict for feature, (verdict, _) in found[client].items()}


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
