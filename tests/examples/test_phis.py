import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax._tree import find_states
from riemann_optax.examples import data, datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train import __main__ as train
from riemann_optax.examples.train import loop
from riemann_optax.examples.train.optimizers import MetricOptions, build_metric
from riemann_optax.examples.train.phis import PHIS
from riemann_optax.examples.train.record import read_record

BATCH = 100
STEPS_PER_EPOCH = 12  # of the 1200 training digits

CONSOLIDATING = [name for name, phi in PHIS.items() if "task_boundary" in getattr(phi.factory(), "needs", ())]
NEEDY_ON_TEXT = [
    name
    for name, phi in PHIS.items()
    if (needs := set(getattr(phi.factory(), "needs", ()))) - set(loop.ALWAYS_GIVEN)
]
# The rules that are the whole rate by themselves, as their docstrings say: they learn it from inputs.
PUBLISHED = [name for name, phi in PHIS.items() if "inputs" in getattr(phi.factory(), "needs", ())]
# E of the other is 11 where nothing has moved yet.
RATES = dict.fromkeys(PUBLISHED, 1.0) | {"sparse_change": 0.3}


@pytest.fixture(scope="module")
def problem():
    dataset = datasets.load("digits")
    small = models.MLP(64, 10, width=8, depth=1, rngs=nnx.Rngs(0))
    return loop.Problem(models.functional(small), dataset)


@pytest.fixture(scope="module")
def text_problem(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(bytes(range(256)) * 20)
    dataset = data.load_text(path, window=8)
    small = models.Transformer(256, 8, width=8, depth=1, num_heads=2, rngs=nnx.Rngs(0))
    return loop.Problem(models.functional(small), dataset)


def metric_of(phi, rate):
    momentum = 0.0 if phi in PUBLISHED else 0.9
    options = MetricOptions("riemannian_sgd", phi, PHIS[phi].alpha, conformal="none", momentum=momentum)
    return build_metric(options, rate)


def batch_of(problem, step=0):
    return data.batch_indices(problem.dataset.num_train, BATCH, 0, step)


def test_every_public_phi_that_needs_no_argument_has_a_name_in_the_trainer():
    public = {name for name in ro.phi.__all__ if inspect.isfunction(getattr(ro.phi, name))}
    made_of_others = public - set(PHIS)
    for name in made_of_others:
        with pytest.raises((TypeError, ValueError)):
            getattr(ro.phi, name)()
    assert set(PHIS) - public == {
        *("plasticity_and_energy", "sparse_change", "permuted_activity", "leaf_mean_activity"),
    }


@pytest.mark.parametrize("phi", PHIS)
def test_every_phi_trains(problem, phi):
    rate = RATES.get(phi, 0.03)
    transformation = metric_of(phi, rate)
    run = loop.start(problem, transformation)
    going = loop.train(
        run,
        problem,
        transformation,
        optax.constant_schedule(rate),
        steps=30,
        batch_size=BATCH,
        seed=0,
        evaluate_every=10,
    )
    assert [step.step for step in going] == [10, 20, 30]
    losses = [row["loss"] for row in run.history["validation"]]
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] < 0.95 * losses[0]
    first, *_, last = run.history["metric"]
    assert min(last["metric_min"]) > 0
    # A metric of one value everywhere would be no metric.
    assert max(last["metric_max"]) > min(last["metric_min"])
    if phi in CONSOLIDATING:
        # Nothing is to be protected before the first task has ended, after 12 steps.
        assert first["metric_min"] == first["metric_max"] == [1.0] * 4
        assert min(last["metric_max"]) > 1


def two_parts():
    phi = ro.phi.weighted_sum(ro.phi.online_ewc(), ro.phi.synaptic_intelligence())
    return optax.chain(ro.scale_by_metric(phi), optax.scale(-0.03))


@pytest.mark.parametrize(
    "make",
    [
        lambda: metric_of("online_ewc", 0.03),
        lambda: metric_of("synaptic_intelligence", 0.03),
        lambda: ro.in_eigenbasis(two_parts()),
        two_parts,
    ],
    ids=["from the boundary", "from the start", "in an eigenbasis", "two states"],
)
def test_a_task_is_an_epoch(problem, make):
    transformation = make()
    training = loop.start(problem, transformation).training
    advance = jax.jit(functools.partial(loop.train_steps, problem, transformation))
    boundaries = []
    for number in range(2 * STEPS_PER_EPOCH + 2):
        if loop.first_of_an_epoch(problem, training.optimizer_state, BATCH):
            boundaries.append(number)
        training, _ = advance(training, problem.parts["train"], batch_of(problem, number)[None])
    assert boundaries == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]


def test_a_state_that_consolidates_and_does_not_count_is_refused():
    """The trainer tells where an epoch begins by its count; the method of tuples was taken for one."""

    class Uncounted(NamedTuple):
        importance: Any

        def consolidated(self, params, task_importance=None):
            return self

    with pytest.raises(InputError, match=r"Uncounted consolidates .* its field count, which it lacks"):
        loop.first_of_an_epoch(None, Uncounted(jnp.ones(2)), 1)


@pytest.mark.parametrize("phi", NEEDY_ON_TEXT)
def test_text_supplies_the_same(text_problem, phi):
    transformation = metric_of(phi, 0.03)
    training = loop.start(text_problem, transformation).training
    advance = functools.partial(loop.train_steps, text_problem, transformation)
    after, (losses, _) = jax.eval_shape(
        advance, training, text_problem.parts["train"], jnp.zeros((2, 3), jnp.int32)
    )
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, training)
    assert losses.shape == (2,)


def test_the_activities_of_a_convnet_are_those_of_its_channels_after_their_norm(problem):
    """One step of the trainer, and the threshold that it leaves behind."""
    convnet = models.functional(models.ConvNet((8, 8, 1), 10, width=2, rngs=nnx.Rngs(0)))
    own = loop.Problem(convnet, problem.dataset)
    transformation = metric_of("sliding_threshold", 0.03)
    training = loop.start(own, transformation).training
    advance = jax.jit(functools.partial(loop.train_steps, own, transformation))
    batch = batch_of(own)
    images, _ = own.dataset.take(own.parts["train"], jnp.asarray(batch))
    module = nnx.merge(convnet.graph, convnet.parameters)
    sent = nnx.relu(module.norms[0](module.convolutions[0](images)))
    after, _ = advance(training, own.parts["train"], batch[None])
    (state,) = find_states(after.optimizer_state, ro.phi.SlidingThresholdState)
    expected = 0.01 * np.mean(np.square(sent), axis=(0, 1, 2))
    kernel, scale = (
        state.threshold[part][0][leaf] for part, leaf in (("convolutions", "kernel"), ("norms", "scale"))
    )
    np.testing.assert_allclose(np.ravel(kernel), expected, rtol=1e-3)
    np.testing.assert_allclose(scale, expected, rtol=1e-3)


def test_the_perturbed_gradients_of_text_are_of_the_loss_summed_over_its_positions(text_problem):
    """What the phi is given is the sum over targets: its deviation moves accordingly."""
    transformation = metric_of("bayesian_gradient_descent", 0.03)
    training = loop.start(text_problem, transformation).training
    batch = jnp.zeros((1, 3), jnp.int32)
    after, _ = jax.jit(functools.partial(loop.train_steps, text_problem, transformation))(
        training, text_problem.parts["train"], batch
    )
    examples = text_problem.dataset.take(text_problem.parts["train"], batch[0])
    places, noise = ro.phi.draw_perturbations(training.optimizer_state, training.parameters)

    def summed(parameters):
        return text_problem.losses(parameters, *examples)[0].sum()

    gradients = jax.jit(jax.vmap(jax.grad(summed)))(places)
    slope = jax.tree.map(lambda g, e: np.mean(np.asarray(g) * np.asarray(e), axis=0), gradients, noise)
    (state,) = find_states(after.optimizer_state, ro.phi.VariationalState)
    expected = jax.tree.map(lambda g: 0.06 * (np.sqrt(1 + (0.03 * g) ** 2) - 0.03 * g), slope)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3), state.deviation, expected)


def test_what_an_optimiser_cannot_do_is_an_error_of_the_command(tmp_path, capsys):
    arguments = [
        "--phi",
        "secant_curvature",
        "--eigenbasis",
        "--baseline",
        "none",
        "--steps",
        "10",
        "--quiet",
    ]
    assert train.main([*arguments, "--model", "mlp", "--out", str(tmp_path / "run")]) == 2
    assert "in_eigenbasis, where its weights are not those of the model" in capsys.readouterr().err


def test_the_command_supplies_what_the_phi_needs(tmp_path, capsys):
    chosen = ["--phi", "online_ewc", "--model", "mlp", "--baseline", "none", "--quiet"]
    size = ["--steps", "20", "--batch-size", "80"]
    assert train.main([*chosen, *size, "--out", str(tmp_path)]) == 0
    assert "riemannian_sgd" in capsys.readouterr().out
    rows = read_record(tmp_path / "record.json")["histories"]["metric"]["metric"]
    # Fifteen steps are an epoch.
    assert max(rows[0]["metric_max"]) == 1
    assert min(rows[1]["metric_max"]) > 1
