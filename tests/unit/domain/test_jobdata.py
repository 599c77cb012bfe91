"""What a job file may say of secrets, inputs, outputs and its folder, in English and in French."""

import pytest

from moulin.api.bounds import check_bounds
from moulin.domain.errors import InvalidSpec
from moulin.domain.jobfile import parse_job
from moulin.domain.secrets import TASK_SECRETS_MAX
from moulin.domain.workload import OutputsWhen, TaskTemplate


def task(**body: object) -> TaskTemplate:
    spec = parse_job({"run": "true", **body})
    check_bounds(spec)
    assert spec.task is not None
    return spec.task


@pytest.mark.parametrize(
    ("written", "plain", "files"),
    [
        (["HF_TOKEN"], {"HF_TOKEN": "HF_TOKEN"}, {}),
        ("HF_TOKEN", {"HF_TOKEN": "HF_TOKEN"}, {}),
        ({"HF_TOKEN": "hugging-face"}, {"HF_TOKEN": "hugging-face"}, {}),
        ({"KEY": {"file": "tls.key"}}, {}, {"KEY": "tls.key"}),
        ({"KEY": {"fichier": "tls.key"}, "T": None}, {"T": "T"}, {"KEY": "tls.key"}),
        ({"KEY": {}}, {}, {"KEY": "KEY"}),
        (None, {}, {}),
    ],
)
def test_secrets_are_named(written, plain, files):
    found = task(secrets=written)
    assert (found.secrets, found.secret_files) == (plain, files)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (["a b"], "no name of a variable"),
        ({"T": "a/b"}, "cannot be the name of a secret"),
        ({"T": "1a"}, "cannot be the name of a secret"),
        ({"T": {"path": "x"}}, "unknown key"),
        ({"1T": "x"}, "no name of a variable"),
        ({f"T{n}": "x" for n in range(TASK_SECRETS_MAX + 1)}, "at most"),
        ([f"T{n}" for n in range(TASK_SECRETS_MAX + 1)], "at most"),
    ],
)
def test_other_forms_of_secrets_are_refused(written, problem):
    with pytest.raises(InvalidSpec, match=problem):
        task(secrets=written)


def test_copies_are_read_in_both_languages():
    english = task(
        inputs={"data/set": "s3://grain/set", "model.bin": "/share/model.bin"},
        outputs={"out": "file:///share/out-{id}"},
        outputs_when="always",
    )
    french = task(entrées=english.inputs, sorties=english.outputs, sorties_si="always")
    assert french == english
    assert english.outputs_when is OutputsWhen.ALWAYS


@pytest.mark.parametrize("place", ["/etc", "../x", "a/../b", "a/..", ".", "./a", "", "a\nb"])
def test_places_stay_below_the_working_directory(place):
    with pytest.raises(InvalidSpec, match="not a name"):
        task(inputs={place: "/share/x"})


@pytest.mark.parametrize(
    "address",
    ["", "share/x", "s3://", "s3://key:word@grain/x", "https://host/x", "file://host/x", "//x", "s3://A/x"],
)  # fmt: skip
def test_addresses_are_whole_and_hold_no_keys(address):
    with pytest.raises(InvalidSpec, match="no address") as caught:
        task(outputs={"x": address})
    assert "secrets" in caught.value.hint


def test_keys_in_the_clear_are_refused_where_they_would_be_used():
    body = {"envs": {"AWS_SECRET_ACCESS_KEY": "x"}}
    assert task(**body).env
    with pytest.raises(InvalidSpec, match="in the clear") as caught:
        task(**body, inputs={"x": "s3://grain/x"})
    assert "moulin secrets set AWS_SECRET_ACCESS_KEY" in caught.value.hint


def test_outputs_of_a_program_in_an_image_are_refused():
    with pytest.raises(InvalidSpec, match="in an image"):
        task(image="alpine", outputs={"x": "/share/x"})
    assert task(image="alpine", inputs={"x": "/share/x"}).inputs


def test_elements_of_an_array_may_not_replace_one_anothers_outputs():
    with pytest.raises(InvalidSpec, match="every element"):
        task(array="0-3", outputs={"x": "/share/x"})
    assert task(array="0-3", outputs={"x": "/share/{index}"}).outputs
