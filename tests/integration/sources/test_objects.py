"""A real S3 server: ranges, multipart objects, digests pinned at first download, resumption."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from moulin.app.models import named_model
from moulin.domain.errors import DigestMismatch, SourceUnavailable
from moulin.domain.model import ObjectFile, Progress, SourceChoice, SourcePreference
from moulin.sources import objects
from moulin.sources.fetch import choose_source, fetch_variant, held_variants, with_digests

DATA = random.Random(3).randbytes(6 * 2**20)
SHA256 = hashlib.sha256(DATA).hexdigest()
SOURCE = ObjectFile(path="models/team/tiny.gguf")
MODEL = named_model("tiny", SOURCE)
SECRET = "a-secret-that-nobody-may-see"
BLOCK_BYTES = 2**20


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def surroundings(address, monkeypatch, tmp_path) -> None:
    values = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "operator",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture(autouse=True)
def stored(surroundings) -> None:
    with closing(boto3.client("s3")) as s3:
        s3.create_bucket(Bucket="models")
    put(DATA)


def put(data: bytes) -> None:
    """Store the object in two parts, as clients store large files."""
    with closing(boto3.client("s3")) as s3:
        place = {"Bucket": "models", "Key": "team/tiny.gguf"}
        upload = s3.create_multipart_upload(**place)["UploadId"]
        parts = []
        for number, piece in enumerate((data[: 5 * 2**20], data[5 * 2**20 :]), 1):
            done = s3.upload_part(**place, UploadId=upload, PartNumber=number, Body=piece)
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})


def chosen(store: Path) -> SourceChoice:
    return choose_source(MODEL, SourcePreference.ANY, store)


class Stopped(Exception):
    """The process died here."""


def stop_after(size_bytes: int):
    def report(progress: Progress) -> None:
        if progress.stage == "downloading" and progress.bytes_done >= size_bytes:
            raise Stopped

    return report


def test_first_download_pins_the_digest(tmp_path) -> None:
    fetched = fetch_variant(chosen(tmp_path), tmp_path)
    assert Path(fetched.path).read_bytes() == DATA
    assert (fetched.sha256, fetched.source) == (SHA256, "s3:models/team/tiny.gguf")
    assert with_digests(MODEL, tmp_path).variants[0].sha256 == SHA256
    assert held_variants(MODEL, tmp_path) == {"file"}
    assert fetch_variant(chosen(tmp_path), tmp_path).is_cached
    assert [path.name for path in (tmp_path / "partial").iterdir() if path.stat().st_size] == []


def test_a_killed_download_goes_on_where_it_stopped(tmp_path) -> None:
    with pytest.raises(Stopped):
        fetch_variant(chosen(tmp_path), tmp_path, stop_after(3 * BLOCK_BYTES))
    seen: list[int] = []
    fetch_variant(
        chosen(tmp_path),
        tmp_path,
        lambda p: seen.append(p.bytes_done) if p.stage == "downloading" else None,
    )
    assert seen == [n * BLOCK_BYTES for n in (4, 5, 6)]
    assert held_variants(MODEL, tmp_path) == {"file"}


def test_half_of_an_object_that_changed_is_not_continued(tmp_path) -> None:
    with pytest.raises(Stopped):
        fetch_variant(chosen(tmp_path), tmp_path, stop_after(BLOCK_BYTES))
    other = DATA[::-1]
    put(other)
    fetched = fetch_variant(chosen(tmp_path), tmp_path)
    assert Path(fetched.path).read_bytes() == other


def test_an_object_that_changes_while_it_is_fetched_is_fetched_again(tmp_path) -> None:
    other = DATA[::-1]

    def report(progress: Progress) -> None:
        if progress.stage == "downloading" and progress.bytes_done == BLOCK_BYTES:
            put(other)

    fetched = fetch_variant(chosen(tmp_path), tmp_path, report)
    assert fetched.sha256 == hashlib.sha256(other).hexdigest()


def test_a_pinned_object_may_not_change(tmp_path) -> None:
    fetched = fetch_variant(chosen(tmp_path), tmp_path)
    Path(fetched.path).unlink()
    put(DATA[::-1])
    with pytest.raises(DigestMismatch, match=SHA256):
        fetch_variant(chosen(tmp_path), tmp_path)
    put(DATA)
    assert fetch_variant(chosen(tmp_path), tmp_path).sha256 == SHA256


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("models/gone.gguf", "there is no such object"),
        ("nobody/tiny.gguf", "there is no such object"),
        ("models/team", "it is no object"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, path, words) -> None:
    with pytest.raises(SourceUnavailable, match=words):
        objects.fetch_object(ObjectFile(path=path), tmp_path / "part", lambda _: None)


def test_a_store_out_of_reach_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SourceUnavailable, match=r"s3:models/team/tiny\.gguf") as caught:
        objects.fetch_object(SOURCE, tmp_path / "part", lambda _: None)
    assert "AWS_ENDPOINT_URL" in caught.value.hint


def test_credentials_come_from_a_file_too(tmp_path, monkeypatch) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = operator\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert fetch_variant(chosen(tmp_path), tmp_path).sha256 == SHA256


def test_secrets_are_shown_nowhere(tmp_path, capfd) -> None:
    fetch_variant(chosen(tmp_path), tmp_path)
    broken = replace(SOURCE, path="models/gone.gguf")
    with pytest.raises(SourceUnavailable) as caught:
        objects.fetch_object(broken, tmp_path / "part", lambda _: None)
    assert SECRET not in f"{caught.value!r} {caught.value.details}"
    assert SECRET not in "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
