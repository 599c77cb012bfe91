"""Stated power of CPUs: which family a name belongs to, and how far the figure is trusted."""

import pytest

from moulin.domain.factory import EnergyClass
from moulin.domain.ids import NodeId
from moulin.domain.observation import NodeCapacity
from moulin.energy.power import cpu_power, power_of


@pytest.mark.parametrize(
    ("name", "idle_mw", "peak_mw", "quality"),
    [
        ("AMD EPYC 7571", 847, 2604, "D"),
        ("AMD EPYC 7B12", 474, 1693, "D"),
        ("AMD EPYC 7742 64-Core Processor", 474, 1693, "D"),
        ("AMD EPYC 7763 64-Core Processor", 456, 1957, "D"),
        ("AMD EPYC 9654 96-Core Processor", 739, 2282, "D"),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 713, 3685, "D"),
        ("Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", 613, 4104, "D"),
        ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", 690, 4063, "D"),
        ("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", 767, 3758, "D"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 1036, 4160, "D"),
        ("Intel(R) Xeon(R) 6972P", 582, 2527, "D"),
        ("Neoverse-N1", 474, 1693, "D"),
        ("AMD EPYC", 740, 3500, "E"),
        ("AMD EPYC 9755 128-Core Processor", 740, 3500, "E"),
        ("", 740, 3500, "E"),
    ],
)
def test_one_thread_by_cpu_name(name, idle_mw, peak_mw, quality):
    power = cpu_power(name, 1000)
    assert (power.idle_mw, power.peak_mw, power.quality.value) == (idle_mw, peak_mw, quality)
    assert "Cloud Carbon Footprint" in power.source
    assert power.uncertainty_ppm == (350_000 if quality == "D" else 500_000)


def test_power_grows_with_threads():
    assert cpu_power("AMD EPYC 7571", 64_000).peak_mw == 64 * 2604


def test_a_node_that_states_its_power_is_believed():
    power = power_of(
        NodeCapacity(
            node=NodeId("n1"),
            cpu_milli=2000,
            memory_bytes=1,
            machine_class="this-machine",
            idle_mw=10_000,
            peak_mw=20_000,
            power_source="a wattmeter",
            power_quality=EnergyClass.FITTED_MODEL,
            power_uncertainty_ppm=120_000,
        )
    )
    assert (power.idle_mw, power.peak_mw, power.source) == (10_000, 20_000, "a wattmeter")
    assert (power.quality, power.uncertainty_ppm) == (EnergyClass.FITTED_MODEL, 120_000)


def test_a_node_without_figures_is_zero_and_says_so():
    power = power_of(
        NodeCapacity(node=NodeId("n1"), cpu_milli=2000, memory_bytes=1, machine_class="x")
    )
    assert (power.peak_mw, power.uncertainty_ppm) == (0, 1_000_000)
    assert "no power figures" in power.source
