"""A phi of one's own in the trainer and in its table, without a change to the package."""

import json
import re
import sys

import pytest

from riemann_optax.examples.train import arguments

from .trainer import run

MODULE = '''
import jax, jax.numpy as jnp, optax
import riemann_optax as ro


def leaky(decay=0.9):
    """Running mean of the size of the gradient: a leak."""
    return ro.phi.activity(decay=decay)


def hungry():
    return ro.phi.hutchinson_curvature()


def with_argument(decay):
    return ro.phi.activity(decay=decay)


def wrong():
    return 3
'''
SHORT = ["--steps", "10", "--baseline", "none"]


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "phis_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("phis_of_mine", None)


def record(folder):
    return json.loads((folder / "record.json").read_text())


def test_it_trains_as_the_same_phi_of_the_package_does(tmp_path, capsys):
    same = ["--optimizer", "riemannian_sgd"]
    assert run(*SHORT, *same, "--phi", "phis_of_mine:leaky", out=tmp_path / "mine") == 0
    assert run(*SHORT, *same, "--phi", "phis_of_mine:leaky", "--resume", out=tmp_path / "mine") == 0
    names = ["phis_of_mine:leaky", "maintenance_energy"]
    assert run(*SHORT, *same, "--compare", *names, out=tmp_path / "both") == 0
    alone, both = record(tmp_path / "mine"), record(tmp_path / "both")
    assert alone["arguments"]["phi"] == "phis_of_mine:leaky"
    assert both["results"].keys() == {"phis_of_mine.leaky", "maintenance_energy"}
    training = both["histories"]["phis_of_mine.leaky"]["training"]
    assert training == alone["histories"]["metric"]["training"]


def test_it_is_in_the_table(capsys):
    for name, reads in {"leaky": "nothing but the gradient", "hungry": "obj_fn: a Hessian product"}.items():
        with pytest.raises(SystemExit):
            arguments.parse(["--phi", f"help:phis_of_mine:{name}"])
        *lines, last = capsys.readouterr().out.splitlines()
        assert lines[0] == "I want a drop-in for AdamW:"
        assert last.startswith("Steps were timed on a CPU")
        assert lines[-2].startswith(f"  phis_of_mine:{name}")
        assert f"reads {reads}" in lines[-1]
        assert "1 values of state per weight" in lines[-1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:phi", "the module no_such_module cannot be imported: No module"),
        (":phi", "--phi :phi names no module: give module:function, such as my_module:my_phi"),
        (".phis_of_mine:leaky", "--phi .phis_of_mine:leaky names no module: give module:function"),
        ("phis_of_mine.:leaky", "--phi phis_of_mine.:leaky names no module: give module:function"),
        ("phis_of_mine:missing", "phis_of_mine has no function missing without required arguments"),
        ("phis_of_mine:with_argument", "has no function with_argument without required arguments"),
        ("phis_of_mine:wrong", "--phi phis_of_mine:wrong returns int: it must return a phi, see check_phi"),
        ("leaky", "--phi leaky is not known: use one of .*; one of your own is module:function"),
    ],
)
@pytest.mark.parametrize("option", ["--phi", "--compare"])
def test_what_is_none_is_refused_in_one_line(name, message, option, tmp_path, capsys):
    assert run(option, name, out=tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_table_of_what_names_no_module_is_refused_in_one_line(capsys):
    assert run("--phi", "help:.phis_of_mine:leaky") == 2
    assert capsys.readouterr().err == (
        "error: --phi .phis_of_mine:leaky names no module: give module:function, such as my_module:my_phi\n"
    )
