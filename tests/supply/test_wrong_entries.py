"""Layers that have other entries than the leaf they belong to: what they show would be of others."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen

import riemann_optax as ro

from .models import array, close

SIZE = 4  # of the stack, of the batch and of the features, so that no shape tells one axis from another
X = array(50, SIZE, SIZE)
LAYER, HALF = linen.Dense(SIZE), linen.Dense(2, use_bias=False)
NEEDS = ("inputs", "activities")
ORDER = jnp.array([1, 0, 3, 2])


def layer(seed):
    return {"kernel": array(seed, SIZE, SIZE), "bias": array(seed + 1, SIZE)}


def stack_of(layers):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


PLAIN, TWO = layer(51), {"first": layer(51), "second": layer(53)}
STACK = stack_of([layer(seed) for seed in range(51, 59, 2)])


def run(params, x):
    return jnp.tanh(LAYER.apply({"params": params}, x))


def scanned(stack, x):
    return jax.lax.scan(lambda x, row: (run(row, x), None), x, stack)[0]


side_by_side = jax.vmap(run, in_axes=(0, None))


def seen(need, model, params):
    return ro.value_and_grad(lambda params, x: jnp.mean(model(params, x) ** 2), need)(params, X)[2][need]


def with_kernel(change):
    return lambda params, x: run(params | {"kernel": change(params["kernel"])}, x)


def of_all(change, model):
    return lambda params, x: model(jax.tree.map(change, params), x)


def in_a_carry(change):
    """The weights that a scan carries are changed in each round."""

    def model(params, x):
        def body(carry, _):
            params, x = carry
            x = run(params, x)
            return (change(params, x), x), None

        return jax.lax.scan(body, (params, x), None, length=2)[0][1]

    return model


def swapped(params, x):
    def body(carry, _):
        first, second, x = carry
        return (second, first, run(first, x)), None

    return jax.lax.scan(body, (params["first"], params["second"], x), None, length=2)[0][2]


def rolled_in_a_carry(stack, x):
    def body(carry, _):
        stack, x = carry
        return (jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), stack), side_by_side(stack, x).mean(0)), None

    return jax.lax.scan(body, (stack, x), None, length=2)[0][1]


def row_of_the_round_before(stack, x):
    def body(carry, row):
        before, x = carry
        return (row, run(before, x)), None

    return jax.lax.scan(body, (jax.tree.map(jnp.zeros_like, PLAIN), x), stack)[0][1]


def chosen_by_cond(params, x):
    return run(jax.lax.cond(x[0, 0] > 0, lambda: params["first"], lambda: params["second"]), x)


def chosen_by_where(params, x):
    return run(jax.tree.map(lambda *two: jnp.where(x[0, 0] > 0, *two), params["first"], params["second"]), x)


def reversed_by_cond(stack, x):
    def turn(stack):
        return jax.tree.map(lambda leaf: leaf[::-1], stack)

    return side_by_side(jax.lax.cond(x[0, 0] > 0, turn, lambda stack: stack, stack), x)


def rolled_in_a_loop(stack, x):
    def roll(_, stack):
        return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), stack)

    return side_by_side(jax.lax.fori_loop(0, 2, roll, stack), x)


WRONG = {
    "stacked in the loss, scan": (TWO, lambda p, x: scanned(stack_of(p.values()), x)),
    "stacked in the loss, vmap": (TWO, lambda p, x: side_by_side(stack_of(p.values()), x)),
    "transposed": (PLAIN, with_kernel(lambda kernel: kernel.T)),
    "rows reversed": (PLAIN, with_kernel(lambda kernel: kernel[::-1])),
    "columns reversed": (PLAIN, with_kernel(lambda kernel: kernel[:, ::-1])),
    "reordered": (PLAIN, with_kernel(lambda kernel: kernel[:, ORDER])),
    "rolled": (PLAIN, with_kernel(lambda kernel: jnp.roll(kernel, 1, 1))),
    "symmetric": (PLAIN, with_kernel(lambda kernel: kernel + kernel.T)),
    "in other groups": (PLAIN, with_kernel(lambda k: k.reshape(2, 2, 4).swapaxes(0, 1).reshape(4, 4))),
    "swapped in a carry": (TWO, swapped),
    "transposed in a carry": (PLAIN, in_a_carry(lambda p, x: p | {"kernel": p["kernel"].T})),
    "a stack rolled in a carry": (STACK, rolled_in_a_carry),
    "a row of the round before": (STACK, row_of_the_round_before),
    "chosen by cond": (TWO, chosen_by_cond),
    "chosen by where": (TWO, chosen_by_where),
    "a stack reversed by cond": (STACK, reversed_by_cond),
    "a stack rolled in a loop": (STACK, rolled_in_a_loop),
    "a stack summed up": (STACK, of_all(lambda leaf: jnp.cumsum(leaf, 0), side_by_side)),
}
REASON = "taken out of their stack|transposed, indexed, joined, stacked or chosen|computed from these"


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("name", WRONG)
def test_layers_that_have_other_entries_than_their_leaf_are_refused(name, need):
    params, model = WRONG[name]
    with pytest.raises(ValueError, match=rf"^{need}: .*\['kernel'\] \([^)]*({REASON})"):
        seen(need, model, params)


@pytest.mark.parametrize("change", ["a fast weight", "a gradient step"])
def test_weights_that_change_in_a_carry_have_no_inputs(change):
    def fast(params, x):
        return params | {"kernel": 0.5 * params["kernel"] + x.T @ x}

    def stepped(params, x):
        gradient = jax.grad(lambda params: jnp.mean(run(params, x) ** 2))(params)
        return jax.tree.map(lambda weight, slope: weight - 0.1 * slope, params, gradient)

    with pytest.raises(ValueError, match=r"\['kernel'\] \((a layer whose weights are computed|weights that)"):
        seen("inputs", in_a_carry(fast if "fast" in change else stepped), PLAIN)


def test_the_inner_layers_of_two_stacks_in_reverse_are_refused():
    stacks = jax.tree.map(lambda leaf: jnp.stack([leaf] * SIZE), STACK)
    model = jax.vmap(side_by_side, in_axes=(0, None))
    close(seen("inputs", model, stacks)["kernel"][:, 0, 0], X)
    with pytest.raises(ValueError, match="give it the parameters as they are"):
        seen("activities", of_all(lambda leaf: leaf[:, ::-1], model), stacks)


def decoded(params, x):
    return LAYER.apply({"params": {"kernel": params["kernel"].T, "bias": jnp.zeros(SIZE)}}, run(params, x))


def decoded_in_part(params, x):
    return HALF.apply({"params": {"kernel": params["kernel"][:, :2]}}, run(params, x))


def decoded_by_equinox(model, x):
    other = eqx.nn.Linear(SIZE, SIZE, use_bias=False, key=jax.random.key(1))
    other = eqx.tree_at(lambda layer: layer.weight, other, model.weight.T)
    return jax.vmap(other)(jnp.tanh(jax.vmap(model)(x)))


EQUINOX = eqx.nn.Linear(SIZE, SIZE, use_bias=False, key=jax.random.key(0))
TIED = {
    "linen": (PLAIN, decoded),
    "in part": (PLAIN, decoded_in_part),
    "equinox": (EQUINOX, decoded_by_equinox),
}


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("name", TIED)
def test_weights_that_another_layer_has_as_well_are_refused(name, need):
    params, model = TIED[name]
    with pytest.raises(
        ValueError, match=r"(kernel'\]|weight) \((a layer whose weights are comp|weights that)"
    ):
        seen(need, model, params)


def hyper(params, x):
    """A layer gives the weights of another: it is observed itself, for these are no entries of its own."""
    kernel = run(params, x)
    return LAYER.apply({"params": {"kernel": kernel, "bias": jnp.zeros(SIZE)}}, x)


def as_before(params, x):
    """Weights that come back to their shape, in half the width of a float, scaled by their own norm."""
    kernel = params["kernel"].reshape(-1, 2).astype(jnp.bfloat16).astype(jnp.float32).reshape(SIZE, SIZE)
    return run(params | {"kernel": kernel / jnp.linalg.norm(params["kernel"].T)}, x)


def with_noise_for_each_example(params, x):
    noise = 1 + jnp.arange(SIZE**3.0).reshape(SIZE, SIZE, SIZE)
    return jax.vmap(lambda one, x: run(params | {"kernel": params["kernel"] * one}, x))(noise, x)


def carried_as_they_are(params, x):
    return in_a_carry(lambda params, x: params)(params, x)


def chosen_or_nothing(params, x):
    return run(jax.tree.map(lambda leaf: jax.lax.cond(True, lambda: leaf, lambda: 0 * leaf), params), x)


@pytest.mark.parametrize("model", [hyper, with_noise_for_each_example, chosen_or_nothing])
def test_what_only_looks_like_other_entries_is_seen(model):
    close(seen("inputs", model, PLAIN)["kernel"], X)


def test_weights_that_come_back_to_their_places_are_seen():
    kernel = PLAIN["kernel"].astype(jnp.bfloat16).astype(jnp.float32) / jnp.linalg.norm(PLAIN["kernel"])
    raw = LAYER.apply({"params": PLAIN | {"kernel": kernel}}, X)
    close(seen("activities", as_before, PLAIN)["kernel"], raw)


def test_weights_that_a_scan_carries_as_they_are_have_the_inputs_of_each_round():
    close(seen("inputs", carried_as_they_are, PLAIN)["kernel"], jnp.stack([X, run(PLAIN, X)]))


def joint(parts):
    """What several calls show of a stack: the rows of one behind those of another, layers beside features."""
    return jnp.concatenate([part.reshape(-1, SIZE, SIZE) for part in parts])


@pytest.mark.parametrize("phi", [ro.phi.sliding_threshold, ro.phi.idbd])
def test_a_stack_that_is_called_twice_has_its_axis(phi):
    need = "activities" if phi is ro.phi.sliding_threshold else "inputs"

    def model(stack, x):
        return jnp.tanh(side_by_side(stack, x)) + side_by_side(stack, 2 * x)

    expected = [jnp.stack([x] * SIZE, 1) for x in (X, 2 * X)]
    if need == "activities":
        expected = [x @ STACK["kernel"] + STACK["bias"][:, None] for x in (X, 2 * X)]
        expected = [jnp.swapaxes(value, 0, 1) for value in expected]
    close(seen(need, model, STACK)["kernel"], joint(expected))
    tx = ro.riemannian_sgd(0.1, momentum=None, phi=phi(axes="scanned"))
    _, gradients, extra = ro.value_and_grad(lambda p, x: jnp.mean(model(p, x) ** 2), tx)(STACK, X)
    tx.update(gradients, tx.init(STACK), STACK, **extra)


def test_a_stack_that_two_scans_run_has_the_rounds_of_both():
    received, x = [], X
    for _ in range(2):
        rows = []
        for row in range(SIZE):
            rows.append(x)
            x = run(jax.tree.map(lambda leaf, row=row: leaf[row], STACK), x)
        received.append(jnp.stack(rows, 1))
    found = seen("inputs", lambda stack, x: scanned(stack, scanned(stack, x)), STACK)
    close(found["kernel"], joint(received))


def test_labels_behind_the_batch_are_refused_where_examples_are_taken_apart():
    """Each example would meet the labels of all of them, by broadcasting."""
    x, y, w = array(0, 8, 4), array(1, 8), array(2, 4)
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.online_ewc())

    def loss(w, x, y):
        return jnp.mean((x @ w - y) ** 2)

    with pytest.raises(ValueError, match=r"further argument 1 .* step\(model, \(inputs, labels\)\)"):
        ro.value_and_grad(loss, needs=tx)(w, x, y, state=tx.init(w))
    with pytest.raises(ValueError, match="further argument 1"):
        ro.testing.check_examples(loss, w, x, y)
    together = ro.value_and_grad(lambda w, batch: loss(w, *batch), needs=tx)
    _, _, extra = together(w, (x, y), state=tx.init(w))
    apart = jax.vmap(jax.grad(loss), (None, 0, 0))(w, x[:, None], y[:, None])
    close(extra["per_example_gradients"], apart)
    with pytest.raises(TypeError, match=r"all data in one batch, such as a tuple \(inputs, labels\)"):
        ro.value_and_grad(loss, needs=tx)(w, (x, y), state=tx.init(w))


def test_a_teacher_with_as_many_rows_as_examples_is_no_data():
    x, w = array(0, 8, 4), array(1, 4)
    teacher = {"kernel": array(2, 8, 4), "bias": array(3, 3)}
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.online_ewc())

    def loss(w, x, teacher):
        return jnp.mean((x @ w - x @ teacher["kernel"].sum(0)) ** 2)

    _, _, extra = ro.value_and_grad(loss, needs=tx)(w, x, teacher, state=tx.init(w))
    close(extra["per_example_gradients"], jax.vmap(jax.grad(loss), (None, 0, None))(w, x[:, None], teacher))


@pytest.mark.parametrize("make", [ro.phi.secant_curvature, ro.phi.mesu])
def test_a_phi_of_each_kind_finds_the_state_of_the_weights_that_there_are(make):
    """``partition_by_kind`` has a state for each of five kinds, and the model weights of two."""
    params = {"a": {"kernel": array(0, 4, 3), "bias": jnp.zeros(3)}}

    def loss(params, x):
        return jnp.mean((x @ params["a"]["kernel"] + params["a"]["bias"]) ** 2)

    phi = ro.riemannian_sgd(0.1, phi=make())
    tx = ro.partition_by_kind(phi, bias=ro.riemannian_sgd(0.1))
    x = array(1, 2, 4)
    _, _, extra = ro.value_and_grad(loss, needs=tx)(params, x, state=tx.init(params))
    assert {"gradients_at_previous_params", "perturbed_gradients"} & set(extra)
    several = ro.partition_by_kind(phi)
    step = ro.value_and_grad(loss, needs=several)
    with pytest.raises(ValueError, match=r"2 groups of this optimiser have a .*the same label"):
        step(params, x, state=several.init(params))


def test_examples_are_checked_where_the_batch_is_one():
    """As by value_and_grad: no array of another length is cut or left out."""
    x = array(0, 4)
    check = ro.testing.check_examples
    for other in (array(1, 10), array(1, 2)):
        with pytest.raises(ValueError, match=r"^batch: its arrays have first axes of lengths"):
            check(lambda w, b: jnp.mean(w * b["x"]) + 0 * b["y"].sum(), jnp.ones([]), {"x": x, "y": other})
    with pytest.raises(ValueError, match="without arrays, and the number of examples is needed"):
        check(lambda w, b: w, jnp.ones([]), {})
    with pytest.raises(TypeError, match=r"has_aux=True where it returns \(value, aux\)"):
        check(lambda w, b: (jnp.mean(w * b), b), jnp.ones([]), x)
    check(lambda w, b: (jnp.mean(w * b), b), jnp.ones([]), x, has_aux=True)
    with pytest.raises(ValueError, match="the loss of the batch is nan"):
        check(lambda w, b: jnp.mean(jnp.log(w * b)), -jnp.ones([]), jnp.abs(x))
