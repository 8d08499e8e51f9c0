"""Long runs: a short form of them, their record, and counters at the end of their range."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.contract import registry
from tests.trust import long_runs


@pytest.mark.parametrize(
    "name", ["phi.activity:squared", "phi.synaptic_intelligence", "phi.secant_curvature"]
)
def test_two_thousand_steps_keep_within_the_bounds(name):
    found = long_runs.run(name, "bfloat16", steps=2_000)
    assert not long_runs.broken(name, "bfloat16", found)
    assert found["counters"].count(2_000) >= 1


def with_8_bits(decay):
    """A running mean of squares that is kept with 8 bits beside float32 weights."""

    def kept(params):
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16) if p.dtype == jnp.float32 else p, params)

    def update(gradients, state, params=None, **extra_args):
        mean = jax.tree.map(lambda g, v: decay * v.astype(g.dtype) + (1 - decay) * g**2, gradients, state)
        return mean, kept(mean)

    return optax.GradientTransformationExtraArgs(lambda params: kept(optax.tree.zeros_like(params)), update)


def test_a_running_mean_that_stalls_is_noticed(monkeypatch):
    """With 8 bits a mean of memory 0.999 stops where its change is rounded away, far from the truth."""
    monkeypatch.setitem(registry.ENTRIES, "phi.stalled", registry.with_phi(lambda: with_8_bits(0.999)))
    found = long_runs.run("phi.stalled", "float32", steps=4_000)
    assert found["difference"] > 0.05
    assert long_runs.broken("phi.stalled", "float32", found)


def test_whatever_is_not_finite_or_negative_is_noticed():
    good = json.loads(long_runs.RESULTS.read_text())["phis"]["phi.activity:squared"]["float32"]
    assert not long_runs.broken("phi.activity:squared", "float32", good)
    for key, value in {
        "least": 0.0,
        "largest": np.inf,
        "largest_entry": np.nan,
        "counters": [1_000_000, -1],
        "difference": 0.1,
    }.items():
        assert long_runs.broken("phi.activity:squared", "float32", good | {key: value})
    assert long_runs.broken("phi.activity:squared", "float32", good | {"counters": [999_999]})


def test_every_phi_has_a_long_run():
    assert set(long_runs.names()) <= set(json.loads(long_runs.RESULTS.read_text())["phis"])


@pytest.mark.parametrize("name", long_runs.names())
def test_the_record_has_a_million_steps_of_every_phi_within_the_bounds(name):
    runs = json.loads(long_runs.RESULTS.read_text())["phis"][name]
    for dtype in long_runs.DTYPES:
        assert runs[dtype]["steps"] == 1_000_000
        assert not long_runs.broken(name, dtype, runs[dtype])
