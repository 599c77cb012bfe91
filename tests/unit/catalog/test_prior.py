"""Energy before any was metered: what it follows from, and that it never claims to be more."""

from dataclasses import replace

import pytest

from moulin.catalog.entries import MODELS
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.catalog.prior import UNCERTAINTY_PPM, Held, Prior, prior_energy
from moulin.domain.factory import MachineClass
from moulin.domain.model import Ability
from moulin.ports.launcher import ModelWork

SMALL = ModelWork(parameters=134_515_008, weights_bytes=98_362_432, kv_bytes_per_token=23_040)
CPUS = Held(power_mw=7_000, cpu_milli=2_000, context_tokens=2_048)
H100 = MACHINE_CLASSES["H100"]
ONE = Held(power_mw=700_000, devices=1, context_tokens=2_048)


def prior(work: ModelWork, held: Held, machine: MachineClass | None = None) -> Prior:
    found = prior_energy(work, held, machine)
    assert found is not None
    return found


def test_it_is_in_the_range_of_what_a_small_model_took_on_two_threads() -> None:
    """51 tokens a second written and 98 read at 7 W were measured: 0.137 J and 0.071 J."""
    found = prior(SMALL, CPUS)
    for measured_uj, guessed_uj in ((137_000, found.output_uj), (71_000, found.input_uj)):
        assert measured_uj / 3 <= guessed_uj <= measured_uj * 3
    assert found.uncertainty_ppm == UNCERTAINTY_PPM == 2_000_000


@pytest.mark.parametrize(
    ("work", "held", "machine"),
    [
        (SMALL, replace(CPUS, power_mw=0), None),
        (SMALL, replace(CPUS, cpu_milli=0), None),
        (replace(SMALL, parameters=0), CPUS, None),
        (SMALL, ONE, MACHINE_CLASSES["Altra-Max-M128-30"]),
    ],
    ids=["no power", "no threads", "a model of unknown size", "a class of unknown arithmetic"],
)
def test_nothing_is_made_of_nothing(
    work: ModelWork, held: Held, machine: MachineClass | None
) -> None:
    assert prior_energy(work, held, machine) is None


def test_more_threads_at_more_power_take_the_same() -> None:
    twice = replace(CPUS, power_mw=14_000, cpu_milli=4_000)
    assert prior(SMALL, twice) == prior(SMALL, CPUS)


def test_overhead_of_the_site_counts() -> None:
    plain = prior(SMALL, CPUS)
    cooled = prior(SMALL, replace(CPUS, pue_ppm=1_500_000))
    assert plain.output_uj < cooled.output_uj <= plain.output_uj * 1.6


def test_an_accelerator_writes_cheaper_for_many_and_says_less_surely() -> None:
    large = ModelWork(parameters=8 * 10**9, weights_bytes=16 * 10**9, kv_bytes_per_token=131_072)
    alone = prior(large, ONE, H100)
    many = prior(large, replace(ONE, parallel_requests=64), H100)
    # 700 W for 16 GB at half of 3.35 TB/s.
    assert alone.output_uj == pytest.approx(6_700_000, rel=0.1)
    assert many.output_uj < alone.output_uj / 6
    assert many.uncertainty_ppm == 8 * alone.uncertainty_ppm
    assert many.output_uj >= many.input_uj


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_of_the_catalogue_has_figures_on_cpus(name: str) -> None:
    model = MODELS[name]
    work = ModelWork(
        parameters=model.architecture.parameters,
        weights_bytes=model.variants[0].size_bytes,
        ability=model.ability,
    )
    found = prior(work, CPUS)
    assert found.input_uj > 0
    assert (found.output_uj > 0) is (model.ability is Ability.GENERATE)


def test_audio_costs_by_its_length_and_speech_by_its_text() -> None:
    whisper = ModelWork(parameters=72_593_920, weights_bytes=1, ability=Ability.TRANSCRIBE)
    voice = ModelWork(parameters=15_653_000, weights_bytes=1, ability=Ability.SPEAK)
    # Faster than the audio itself, which would take 7,000 uJ per millisecond at 7 W.
    assert 100 < prior(whisper, CPUS).input_uj < 7_000
    assert 7_000 < prior(voice, CPUS).input_uj < 7_000 * 70
