"""The catalogue as control plane and API meet it, over real files."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.app import models
from moulin.app.models import FAILED, FETCHING, READY, ModelLibrary
from moulin.app.runtimes import RuntimeBook
from moulin.domain.control import FetchStatus, FetchWanted
from moulin.domain.errors import (
    AlreadyExists,
    EngineUnavailable,
    InvalidRequest,
    Refused,
    SourceUnavailable,
    UnknownName,
)
from moulin.domain.ids import NodeId, OrganisationId, ProjectId, WorkloadId, attempt_id, step_id
from moulin.domain.model import PAGED_PROCESS_BYTES
from moulin.domain.plan import StartStep
from moulin.domain.workload import EndpointSpec, Resources, TaskTemplate
from moulin.sources.files import describe_file
from tests.checkpoint_bytes import write_checkpoint
from tests.gguf_bytes import gguf
from tests.integration.sources.model_server import running


@pytest.fixture
def library(tmp_path):
    return ModelLibrary(tmp_path / "data", tmp_path / "keys", b"pepper")


class Tiny(str):
    """The name of a model that an operator adds from `source`."""

    __slots__ = ("source",)
    source: str


@pytest.fixture
def name(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf())
    tiny = Tiny("tiny")
    tiny.source = f"file:{path}"
    return tiny


def fetched(library: ModelLibrary, name: Tiny) -> FetchStatus:
    """Fetch and wait for the end, as callers do: by asking again."""
    status = library.fetch(name, FetchWanted(source=name.source))
    while status.state == FETCHING:
        status = library.model(name).fetch
    return status


def step(name: str, generation: int = 1) -> StartStep:
    attempt = attempt_id("end_1", 0, generation)
    return StartStep(
        step=step_id(attempt, 0),
        attempt=attempt,
        workload=WorkloadId("end_1"),
        organisation=OrganisationId("lab"),
        project=ProjectId("atelier"),
        unit=0,
        generation=generation,
        rank=0,
        nodes=(NodeId("n"),),
        devices=(),
        resources=Resources(cpu_milli=1500),
        task=TaskTemplate(command=()),
        endpoint=EndpointSpec(model=name),
    )


def test_what_is_not_on_disk_is_not_served(library, name):
    with pytest.raises(Refused, match="not on"):
        library.facts(EndpointSpec(model="smollm2-135m-instruct"))
    for unknown in ("smolm", name):
        with pytest.raises(UnknownName):
            library.facts(EndpointSpec(model=unknown))


def test_a_tenant_learns_nothing_of_files(library, name):
    for asked in (name.source, "file:/etc/passwd", "file:/nowhere"):
        with pytest.raises(UnknownName):
            library.facts(EndpointSpec(model=asked))
        with pytest.raises(UnknownName):
            library.model(asked)


def test_an_added_file_is_an_entry_that_outlives_the_process(library, name, tmp_path):
    fetched(library, name)
    Path(name.source.removeprefix("file:")).unlink()
    again = ModelLibrary(tmp_path / "data", tmp_path / "keys", b"pepper")
    assert name in [entry.name for entry in again.models()]
    wanted = EndpointSpec(model=name, context_tokens=64)
    assert again.facts(wanted) == library.facts(wanted)


def test_a_name_that_is_taken_is_not_taken_over(library, name, tmp_path):
    with pytest.raises(AlreadyExists):
        library.fetch("smollm2-135m-instruct", FetchWanted(source=name.source))
    fetched(library, name)
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf()[:-1] + b"\x01")
    with pytest.raises(AlreadyExists):
        library.fetch(name, FetchWanted(source=f"file:{other}"))


def test_facts_name_the_variant_and_its_digest(library, name):
    assert fetched(library, name).state == READY
    facts = library.facts(EndpointSpec(model=name, context_tokens=64))
    [variant] = library.model(name).variants
    assert facts.variant == variant.name
    assert facts.digest == f"sha256:{library.model(name).fetch.sha256}"
    assert facts.memory_bytes > variant.size_bytes
    again = library.facts(EndpointSpec(model=name, variant=facts.variant, context_tokens=64))
    assert again == facts


def test_a_replicas_key_is_in_a_file_for_this_user_alone(library, name, tmp_path):
    fetched(library, name)
    task = library.task(step(name))
    key_file = Path(task.command[task.command.index("--key-file") + 1])
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    key = key_file.read_text()
    assert key == library.replica_key(step(name).attempt)
    assert key not in " ".join(task.command)
    assert task.command[task.command.index("--threads") + 1] == "2"


def test_keys_of_earlier_generations_go(library, name, tmp_path):
    fetched(library, name)
    for generation in (1, 2, 3):
        library.task(step(name, generation))
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["end_1.u0.g3"]


def test_a_key_that_cannot_be_written_now_is_tried_again(library, name, tmp_path):
    fetched(library, name)
    (tmp_path / "keys").write_text("in the way")
    with pytest.raises(EngineUnavailable, match="write the key"):
        library.task(step(name))


def test_only_endpoints_are_served(library, name):
    with pytest.raises(Refused, match="not an endpoint"):
        library.task(replace(step(name), endpoint=None))


def test_replica_keys_differ_by_replica_and_by_factory(library, tmp_path):
    other = ModelLibrary(tmp_path, tmp_path, b"another pepper")
    keys = {each.replica_key(a) for each in (library, other) for a in ("a.u0.g1", "a.u0.g2")}
    assert len(keys) == 4


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("a bug")])
def test_a_fetch_that_breaks_says_so(library, name, monkeypatch, error):
    def broken(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(models, "fetch_variant", broken)
    status = fetched(library, name)
    assert status.state == FAILED
    assert status.message
    monkeypatch.undo()
    assert fetched(library, name).state == READY


def test_a_file_that_is_gone_is_not_added(library, name):
    Path(name.source.removeprefix("file:")).unlink()
    with pytest.raises(SourceUnavailable, match=r"tiny\.gguf"):
        library.fetch(name, FetchWanted(source=name.source))
    with pytest.raises(UnknownName):
        library.model(name)


def test_a_model_of_an_address_joins_the_catalogue_when_it_is_here(tmp_path, library, monkeypatch):
    with running() as server:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        # What HF_ENDPOINT does in a new process.
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.hub["maker/model-gguf/tiny.gguf"] = gguf()
        named = Tiny("mine")
        named.source = "hf:maker/model-gguf/tiny.gguf"
        status = fetched(library, named)
        assert (status.state, status.provenance) == (READY, "named"), status
        entry = library.entry("mine")
        assert entry.architecture.layers > 0
        assert entry.variants[0].sources[0].address == "hf:maker/model-gguf/tiny.gguf@main"
        assert library.facts(EndpointSpec(model="mine", context_tokens=16)).variant == "file"
        with pytest.raises(AlreadyExists):
            library.fetch("mine", FetchWanted(source="s3:other/model.gguf"))
    # A new process finds it by what the old one wrote.
    again = ModelLibrary(tmp_path / "data", tmp_path / "keys", b"pepper")
    assert again.entry("mine").variants == entry.variants
    assert "mine" in {model.name for model in again.models()}


def test_a_folder_in_the_hubs_form_is_for_vllm(library, tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "ours")
    ours = Tiny("ours")
    ours.source = f"file:{folder}"
    assert fetched(library, ours).state == READY
    [variant] = library.model("ours").variants
    assert (variant.runtime, variant.runtime_hint) == ("vllm", "moulin runtime install vllm")
    wanted = EndpointSpec(model="ours", context_tokens=64)
    with pytest.raises(Refused, match="the runtime vllm") as caught:
        library.facts(wanted)
    assert caught.value.hint == "moulin runtime install vllm"
    monkeypatch.setattr(RuntimeBook, "command", lambda _, name: ("run", name))
    facts = library.facts(wanted)
    assert facts.digest == f"sha256:{variant.sha256}"
    assert facts.memory_bytes > variant.size_bytes + PAGED_PROCESS_BYTES
    command = library.task(step("ours")).command
    assert command[:2] == ("run", "vllm")
    assert (Path(command[command.index("--model") + 1]) / "config.json").is_file()
    # A new process reads the same from the store alone.
    for path in folder.iterdir():
        path.unlink()
    again = ModelLibrary(tmp_path / "data", tmp_path / "keys", b"pepper")
    assert again.facts(wanted) == facts


def test_a_form_for_another_runtime_is_served_by_name_alone(tmp_path, monkeypatch):
    tiny = tmp_path / "tiny.gguf"
    tiny.write_bytes(gguf())
    own, other = describe_file(f"file:{tiny}"), write_checkpoint(tmp_path / "ours")
    [form] = describe_file(f"file:{other}").variants
    forms = (replace(form, name="bf16", runtime="vllm"), *own.variants)
    entry = replace(own, name="both", variants=forms)
    monkeypatch.setattr(RuntimeBook, "command", lambda _, name: ("run", name))
    library = ModelLibrary(tmp_path / "data", tmp_path / "keys", b"pepper", {"both": entry})
    both = Tiny("both")
    both.source = "any"
    assert fetched(library, both).variant == "file"
    wanted = EndpointSpec(model="both", context_tokens=64)
    with pytest.raises(Refused, match="not on disk") as caught:
        library.facts(replace(wanted, variant="bf16"))
    assert "--variant bf16" in caught.value.hint
    library.fetch("both", FetchWanted(source="any", variant="bf16"))
    while library.model("both").fetch.state == FETCHING:
        pass
    assert library.facts(wanted).variant == "file"
    assert library.facts(replace(wanted, variant="bf16")).variant == "bf16"
    at = replace(step("both"), endpoint=replace(wanted, variant="bf16"))
    assert library.task(at).command[:2] == ("run", "vllm")


def test_an_address_that_names_no_file_is_refused(library):
    with pytest.raises(InvalidRequest, match="names no file"):
        library.fetch("mine", FetchWanted(source="hf:maker"))


def test_a_model_of_an_address_that_fails_says_why(library, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = Tiny("mine")
    named.source = "hf:maker/model-gguf/tiny.gguf"
    status = fetched(library, named)
    assert status.state == FAILED
    assert "mine" not in {model.name for model in library.models()}
