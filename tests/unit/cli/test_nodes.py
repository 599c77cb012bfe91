"""`moulin nodes`: what nodes cannot carry, said once for all that lack the same."""

from moulin.cli.nodes import _show_list
from moulin.domain.views import NodeView


def view(name, lacks=()):
    return NodeView(
        node=name,
        pool="p",
        zone="z",
        engine="ray",
        machine_class="cpu",
        cpu_milli=1,
        cpu_milli_held=0,
        memory_bytes=1,
        memory_bytes_held=0,
        lacks=lacks,
    )


def test_nodes_that_lack_the_same_share_a_line(capsys):
    many = tuple(view(f"n{index}", lacks=("login", "secrets")) for index in range(7))
    _show_list((*many, view("m1", lacks=("levitation",)), view("m2")))
    lines = [line for line in capsys.readouterr().out.splitlines() if "cannot carry" in line]
    assert lines == [
        "n0, n1, n2, n3, n4 and 2 more cannot carry: an SSH login, secrets",
        "m1 cannot carry: levitation",
    ]


def test_nodes_that_lack_nothing_say_nothing(capsys):
    _show_list((view("m2"),))
    assert "cannot carry" not in capsys.readouterr().out
