"""Any Optax optimiser with a learning rate as a baseline of the trainer."""

import functools
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from riemann_optax.examples import datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.schedule import warmup_cosine
from riemann_optax.examples.train import arguments, loop, placement, plan
from riemann_optax.examples.train.optimizers import build_baseline

from .trainer import SMALL, run

SHORT = ["--phi", "maintenance_energy", "--steps", "2"]


def has_a_rate(factory):
    if not (inspect.isfunction(factory) or isinstance(factory, functools.partial)):
        return False
    return any(name.endswith("learning_rate") for name in inspect.signature(factory).parameters)


WITH_A_RATE = sorted(
    {
        name
        for module in (optax, optax.contrib)
        for name, value in vars(module).items()
        if not name.startswith("_") and has_a_rate(value)
    }
)


def changes(optimizer, steps=3):
    """The change of each step, of a constant gradient."""
    weights = {"w": jnp.ones([2, 2])}
    state, found = optimizer.init(weights), []
    for _ in range(steps):
        update, state = optimizer.update(weights, state, weights, value=jnp.array(100.0))
        found.append(float(jnp.abs(update["w"]).max()))
    return found


@pytest.mark.parametrize(
    "name",
    # Those of Optax that are partials; whose first state holds the weights themselves; that take no schedule;
    # with arrays of no values in their state, which the oldest supported Optax does not have.
    [
        *("nadamw", "lbfgs", "prodigy", "rprop", "polyak_sgd", "sm3"),
        *(["galore"] if "galore" in WITH_A_RATE else []),
    ],
)
def test_two_steps_of_it_are_run_and_resumed(tmp_path, name):
    baseline = ["--baseline", name, "--baseline-learning-rate", "0.01"]
    assert run(*SHORT, *baseline, out=tmp_path) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    first, last = (record["histories"]["baseline"]["validation"][at] for at in (0, -1))
    assert last["step"] == 2
    assert last["energy"] > 0
    assert last["loss"] != first["loss"]
    assert run(*SHORT, *baseline, "--steps", "4", "--resume", out=tmp_path) == 0
    assert json.loads((tmp_path / "record.json").read_text())["results"]["baseline"]["steps"] == 4


@pytest.mark.filterwarnings("ignore")  # some are deprecated
@pytest.mark.parametrize("name", WITH_A_RATE)
def test_each_is_built_or_refused_by_name(name):
    try:
        build_baseline(name, warmup_cosine(0.1, 20), {})
    except InputError as error:
        refused = str(error)
        assert refused.startswith(f"--baseline {name} cannot be built (")
        assert "missing" in refused  # an argument that has no default


@pytest.mark.parametrize("name", ["nadam", "nadamw"])
def test_a_partial_of_optax_is_the_optimiser(name):
    schedule = warmup_cosine(0.1, 20)
    assert changes(build_baseline(name, schedule, {})) == changes(getattr(optax, name)(schedule))


def test_a_rate_that_must_be_a_number_follows_the_schedule_all_the_same():
    def rates(count):
        return 0.1 * 0.5**count

    largest = changes(build_baseline("polyak_sgd", rates, {}))
    np.testing.assert_allclose(largest, [0.1, 0.05, 0.025], rtol=1e-6)
    constant = changes(build_baseline("sm3", 1.0, {}))
    varied = changes(build_baseline("sm3", rates, {}))
    np.testing.assert_allclose(varied, np.array(constant) * [0.1, 0.05, 0.025], rtol=1e-6)


def test_a_rate_that_is_the_first_state_is_the_peak():
    schedule = warmup_cosine(0.1, 400)
    first = build_baseline("rprop", schedule, {}, peak=0.1).init({"w": jnp.ones([2])})
    np.testing.assert_allclose(optax.tree.get(first, "step_sizes")["w"], 0.1)
    parsed = arguments.parse([*SMALL, "--baseline", "rprop", "--baseline-learning-rate", "0.001"])
    state = plan.build_contestants(parsed)["baseline"].transformation.init({"w": jnp.ones([2])})
    np.testing.assert_allclose(optax.tree.get(state, "step_sizes")["w"], 0.001)


@pytest.mark.parametrize("shard", placement.SHARDS)
@pytest.mark.parametrize("name", ["lbfgs", "prodigy", "dog"])
def test_no_two_arrays_of_a_first_state_share_a_buffer(name, shard):
    dataset = datasets.load("digits")
    problem = loop.Problem(models.build("mlp", dataset, 0), dataset, placement.Placement(shard))
    training = loop.start(problem, build_baseline(name, 0.1, {})).training
    seen = set()
    for leaf in jax.tree.leaves(training):
        pieces = {piece.data.unsafe_buffer_pointer() for piece in leaf.addressable_shards}
        assert not pieces & seen
        seen |= pieces


def test_a_whole_number_stays_whole():
    """As ``lbfgs`` and ``galore`` need; a float is an error deep in Optax."""
    said = ["--baseline", "lbfgs", "--baseline-learning-rate", "0.1", "--baseline-option", "memory_size=3"]
    state = plan.build_contestants(arguments.parse([*SMALL, *said]))["baseline"].transformation.init(
        {"w": jnp.ones([2])}
    )
    assert optax.tree.get(state, "weights_memory").shape == (3,)
