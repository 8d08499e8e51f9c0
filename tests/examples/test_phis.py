import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax.examples import data, datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train import __main__ as train
from riemann_optax.examples.train import extra_arguments as supplies
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
    and not needs & set(supplies.OBSERVED)
]
# The rules that are the whole rate by themselves, as their docstrings say: they learn it from inputs.
PUBLISHED = [name for name, phi in PHIS.items() if "inputs" in getattr(phi.factory(), "needs", ())]


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


def step_of(problem, training):
    return loop.Step(
        problem, training, *problem.dataset.take(problem.parts["train"], jnp.asarray(batch_of(problem)))
    )


def first_step(problem, phi):
    return step_of(problem, loop.start(problem, metric_of(phi, 0.03)).training)


def batch_gradient(step, parameters):
    def loss(parameters):
        return step.problem.losses(parameters, step.inputs, step.targets)[0].mean()

    return jax.jit(jax.grad(loss))(parameters)


def supplied_by(supplier, step):
    """What a supplier gives inside of a compiled step."""
    return jax.jit(lambda *arrays: supplier(loop.Step(step.problem, *arrays)))(*step[1:])


def assert_close(ours, theirs):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ours, theirs)


def test_every_public_phi_that_needs_no_argument_has_a_name_in_the_trainer():
    public = {name for name in ro.phi.__all__ if inspect.isfunction(getattr(ro.phi, name))}
    made_of_others = public - set(PHIS)
    for name in made_of_others:
        with pytest.raises((TypeError, ValueError)):
            getattr(ro.phi, name)()
    assert set(PHIS) - public == {"plasticity_and_energy", "permuted_activity", "leaf_mean_activity"}


@pytest.mark.parametrize("phi", PHIS)
def test_every_phi_trains(problem, phi):
    rate = 1.0 if phi in PUBLISHED else 0.03
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
        supply=supplies.supply_for(PHIS[phi].factory(), problem.model),
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


@pytest.mark.parametrize("phi", ["online_ewc", "synaptic_intelligence"])
def test_a_task_is_an_epoch(problem, phi):
    transformation = metric_of(phi, 0.03)
    training = loop.start(problem, transformation).training
    supply = supplies.supply_for(PHIS[phi].factory(), problem.model)
    advance = jax.jit(functools.partial(loop.train_steps, problem, transformation, supply=supply))
    boundaries = []
    for number in range(2 * STEPS_PER_EPOCH + 2):
        if supplies.task_boundary(step_of(problem, training))["task_boundary"]:
            boundaries.append(number)
        training, _ = advance(training, problem.parts["train"], batch_of(problem, number)[None])
    assert boundaries == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]


@pytest.mark.parametrize("phi", NEEDY_ON_TEXT)
def test_text_supplies_the_same(text_problem, phi):
    transformation = metric_of(phi, 0.03)
    training = loop.start(text_problem, transformation).training
    supply = supplies.supply_for(transformation, text_problem.model)
    advance = functools.partial(loop.train_steps, text_problem, transformation, supply=supply)
    after, (losses, _) = jax.eval_shape(
        advance, training, text_problem.parts["train"], jnp.zeros((2, 3), jnp.int32)
    )
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, training)
    assert losses.shape == (2,)


def test_per_example_gradients_are_those_of_the_examples(problem):
    step = first_step(problem, "online_ewc")
    supplied = supplied_by(supplies.per_example_gradients, step)["per_example_gradients"]
    parameters = step.training.parameters
    assert_close(jax.tree.map(lambda g: g.mean(0), supplied), batch_gradient(step, parameters))
    third = step._replace(inputs=step.inputs[2:3], targets=step.targets[2:3])
    assert_close(jax.tree.map(lambda g: g[2], supplied), batch_gradient(third, parameters))


def test_output_norm_gradients_are_those_of_the_logits(problem):
    step = first_step(problem, "memory_aware_synapses")
    supplied = supplied_by(supplies.output_norm_gradients, step)["output_norm_gradients"]["head"]["bias"]
    # The squared norm of the logits grows by twice the logit for each bias of the head.
    assert_close(supplied, 2 * problem.model.apply(step.training.parameters, step.inputs))


def test_perturbed_gradients_are_of_the_summed_loss_at_the_perturbed_weights(problem):
    step = first_step(problem, "mesu")
    supplied = supplied_by(supplies.perturbed_gradients, step)
    noise, gradients = supplied["perturbations"], supplied["perturbed_gradients"]
    place = jax.tree.map(lambda w, e: w + 0.06 * e[3], step.training.parameters, noise)
    summed = jax.tree.map(lambda g: BATCH * g, batch_gradient(step, place))
    assert_close(jax.tree.map(lambda g: g[3], gradients), summed)
    assert_close(supplied["grad"], jax.tree.map(lambda g: g.mean(0) / BATCH, gradients))


def test_the_gradient_at_the_previous_weights_is_of_this_batch(problem):
    transformation = metric_of("secant_curvature", 0.03)
    training = loop.start(problem, transformation).training
    supply = supplies.supply_for(transformation, problem.model)
    batches = np.stack([batch_of(problem, 5)])
    advance = jax.jit(functools.partial(loop.train_steps, problem, transformation, supply=supply))
    after, _ = advance(training, problem.parts["train"], batches)
    step = step_of(problem, after)
    supplied = supplied_by(supplies.gradients_at_previous_params, step)["gradients_at_previous_params"]
    assert_close(supplied, batch_gradient(step, training.parameters))


def test_the_loss_of_the_outputs_is_the_loss(problem):
    step = first_step(problem, "gauss_newton_curvature")
    outputs_fn = supplies.outputs_fn(step)["outputs_fn"]
    outputs_loss_fn = supplies.outputs_loss_fn(step)["outputs_loss_fn"]
    gradient = jax.grad(lambda p: outputs_loss_fn(outputs_fn(p)))(step.training.parameters)
    assert_close(gradient, batch_gradient(step, step.training.parameters))


def test_inputs_and_activities_are_those_of_the_layers(problem):
    step = first_step(problem, "idbd")
    parameters = step.training.parameters
    inputs = supplied_by(supplies.inputs, step)["inputs"]
    activities = supplied_by(supplies.activities, step)["activities"]
    hidden, head = parameters["hidden"][0], parameters["head"]
    assert_close(inputs["hidden"][0], {"kernel": step.inputs.reshape(BATCH, -1), "bias": 1.0})
    sent = jax.nn.relu(inputs["hidden"][0]["kernel"] @ hidden["kernel"] + hidden["bias"])
    assert_close(activities["hidden"][0], {"kernel": sent, "bias": sent})
    assert_close(inputs["head"], {"kernel": sent, "bias": 1.0})
    logits = sent @ head["kernel"] + head["bias"]
    assert_close(activities["head"], {"kernel": logits, "bias": logits})


def test_activities_of_a_convnet_are_those_of_its_channels(problem):
    convnet = models.functional(models.ConvNet((8, 8, 1), 10, width=2, rngs=nnx.Rngs(0)))
    step = first_step(loop.Problem(convnet, problem.dataset), "sliding_threshold")
    activities = supplied_by(supplies.activities, step)["activities"]
    sizes = [activities["convolutions"][depth]["kernel"].shape for depth in range(3)]
    assert sizes == [(BATCH, 8, 8, 2), (BATCH, 4, 4, 4), (BATCH, 4, 4, 4)]
    assert all(jnp.min(leaf) == 0 for leaf in jax.tree.leaves(activities["norms"]))
    # Compiled like the other: a norm over two channels that are nearly alike makes much of their rounding.
    assert_close(activities["head"]["bias"], jax.jit(convnet.apply)(step.training.parameters, step.inputs))
    phi = ro.phi.sliding_threshold()
    values, _ = jax.jit(phi.update)(convnet.parameters, phi.init(convnet.parameters), activities=activities)
    mean_square = np.mean(np.square(activities["convolutions"][0]["kernel"]), axis=(0, 1, 2))
    expected = np.broadcast_to(mean_square, (3, 3, 1, 2))
    np.testing.assert_allclose(values["convolutions"][0]["kernel"], expected, rtol=1e-5)


def test_only_what_is_read_is_made(problem):
    """What a phi is given stands in the jaxpr of its update, and nothing else is made."""
    for name, phi in PHIS.items():
        supply = supplies.supply_for(phi.factory(), problem.model)
        needs = set(getattr(phi.factory(), "needs", ())) - set(loop.ALWAYS_GIVEN)
        made = set() if supply is None else set(supply(first_step(problem, name)))
        assert made - {"grad"} == needs, name


def test_whatever_the_package_declares_is_made_or_given():
    declared = {need for phi in PHIS.values() for need in getattr(phi.factory(), "needs", ())}
    assert declared <= set(supplies.SUPPLIERS) | set(loop.ALWAYS_GIVEN)
    assert set(supplies.SUPPLIERS) <= set(ro.phi.EXTRA_ARGUMENTS)


def test_a_need_that_the_trainer_cannot_meet_is_refused(problem):
    phi = ro.phi.Phi(optax.init_empty_state, None, name="told", needs=["task_importance"])
    with pytest.raises(InputError, match=r"^--phi: it reads the extra argument task_importance, which the"):
        supplies.supply_for(phi, problem.model)


@pytest.mark.parametrize(
    ("phi", "signal", "able"),
    [
        ("idbd", "inputs", "mlp"),
        ("sliding_threshold", "activities", "mlp or convnet"),
    ],
)
def test_a_model_that_cannot_tell_is_refused_with_those_that_can(text_problem, phi, signal, able):
    with pytest.raises(InputError) as caught:
        supplies.supply_for(PHIS[phi].factory(), text_problem.model)
    assert str(caught.value) == (
        f"--phi: it reads the {signal} of every layer, which this model does not tell: "
        f"use --model {able}, on images"
    )


def test_the_command_refuses_it_before_it_writes_anything(tmp_path, capsys):
    assert train.main(["--phi", "idbd", "--model", "convnet", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: --phi: it reads the inputs of every layer")
    assert list(tmp_path.iterdir()) == []


def test_the_command_supplies_what_the_phi_needs(tmp_path, capsys):
    chosen = ["--phi", "online_ewc", "--model", "mlp", "--baseline", "none", "--quiet"]
    size = ["--steps", "20", "--batch-size", "80"]
    assert train.main([*chosen, *size, "--out", str(tmp_path)]) == 0
    assert "riemannian_sgd" in capsys.readouterr().out
    rows = read_record(tmp_path / "record.json")["histories"]["metric"]["metric"]
    # Fifteen steps are an epoch.
    assert max(rows[0]["metric_max"]) == 1
    assert min(rows[1]["metric_max"]) > 1
