"""The rate to begin at, beside rates that others published and that were searched for."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import riemann_optax as ro

RECORDS = Path(__file__).parents[2] / "benchmarks" / "results" / "drop_in.jsonl"
# Brown et al, 2020, Table 2.1: millions of weights and the learning rate.
GPT_3 = {
    125: 6e-4,
    350: 3e-4,
    760: 2.5e-4,
    1_300: 2e-4,
    2_700: 1.6e-4,
    6_700: 1.2e-4,
    13_000: 1e-4,
    175_000: 6e-5,
}


def of_size(count):
    return jax.ShapeDtypeStruct((count,), jnp.float32)


def searched():
    """The best of AdamW's rates on each model of the records, by its number of weights."""
    losses = {}
    for line in RECORDS.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("key", {}).get("optimizer") == "optax.adamw" and entry["key"]["seed"] == 0:
            of_shape = losses.setdefault(json.dumps(entry["key"]["shape"]), {})
            of_shape[entry["key"]["rate"]] = entry["result"]["validation"], entry["result"]["weights"]
    for of_shape in losses.values():
        rate = min(of_shape, key=lambda rate: of_shape[rate][0])
        yield of_shape[rate][1], rate


def test_eight_times_the_weights_have_half_the_rate():
    assert ro.starting_rate(of_size(1_000_000)) == pytest.approx(0.003, rel=1e-12)
    assert ro.starting_rate(of_size(8_000_000)) == pytest.approx(0.0015, rel=1e-12)
    assert ro.starting_rate(of_size(1_000)) == pytest.approx(0.03, rel=1e-12)


@pytest.mark.parametrize(("millions", "published"), GPT_3.items())
def test_it_lies_near_the_rates_of_gpt_3(millions, published):
    assert 1 / 1.5 < ro.starting_rate(of_size(millions * 10**6)) / published < 1.5


def test_it_lies_near_the_rates_that_were_searched_for():
    found = list(searched())
    assert len(found) >= 6
    for weights, rate in found:
        assert 1 / 3 < ro.starting_rate(of_size(weights)) / rate < 3


class Linear(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(9, 9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)  # its key and count are no weights


def test_models_of_flax_and_shapes_are_counted_alike():
    linen = nn.Dense(9).init(jax.random.key(0), jnp.ones([1, 9]))
    expected = 0.003 * (1e6 / 90) ** (1 / 3)
    for params in (
        linen,
        jax.eval_shape(lambda: linen),
        Linear(nnx.Rngs(0)),
        [linen, None, 3, jnp.arange(5)],
    ):
        assert ro.starting_rate(params) == pytest.approx(expected, rel=1e-12)


def test_no_weights_have_no_rate():
    with pytest.raises(ValueError, match="params have no floating or complex arrays"):
        ro.starting_rate({"count": jnp.arange(3)})


def test_running_statistics_of_a_module_are_no_weights():
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    assert (
        ro.starting_rate(model)
        == ro.starting_rate(nnx.state(model, nnx.Param))
        == ro.starting_rate(of_size(56))
    )


def test_the_state_of_an_optimizer_is_not_counted_as_weights():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ro.riemannian_adamw(1e-3), wrt=nnx.Param)
    with pytest.raises(TypeError, match=r"^params is an nnx.Optimizer: give starting_rate the model"):
        ro.starting_rate(optimizer)


def test_a_training_state_is_not_counted_as_weights():
    params = {"kernel": jnp.ones((8, 8))}
    state = TrainState.create(apply_fn=None, params=params, tx=ro.riemannian_adamw(1e-3))
    with pytest.raises(TypeError, match=r"^params is a whole training state: give starting_rate its params"):
        ro.starting_rate(state)
    metric = ro.metric_at(state.tx, params, state, params)
    np.testing.assert_array_equal(
        metric["kernel"], ro.metric_at(state.tx, params, state.opt_state, params)["kernel"]
    )
