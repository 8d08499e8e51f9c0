"""check_phi accepts the phis of this package and says in words what a broken one breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax.testing import check_phi


def phi(update, init=lambda params: ()):
    return optax.GradientTransformationExtraArgs(init, update)


def square(gradients):
    return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradients)


def test_report_of_good_phis():
    assert check_phi(ro.phi.activity()) == (True, 1.0, False)
    assert check_phi(ro.phi.maintenance_energy()) == (True, 0.0, True)
    assert check_phi(ro.phi.modification_energy()).state_per_weight == 2.0
    loss = lambda p: sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(p))  # noqa: E731
    assert check_phi(ro.phi.hutchinson_curvature(), obj_fn=loss).needs_params
    halved = phi(lambda g, s, p=None, **_: (jax.tree.map(lambda x: -0.5 * x / (1 + x), square(g)), s))
    assert not check_phi(halved).nonnegative


def on_the_host(x):
    return jax.pure_callback(np.sqrt, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def devices_of(params):
    """How many devices the first leaf is spread over."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return 1 if sharding is None else len(sharding.device_set)


def on_one_device_only(params):
    if devices_of(params) > 1:
        raise NotImplementedError("one device")
    return ()


def times_its_own_correlation(x):
    """Where the contracted axis is spread, an Explicit mesh asks for the sharding of the result."""
    return x @ (x.T @ x) if x.ndim == 2 else x


BROKEN = {
    "misplaced": (
        phi(
            lambda g, s, p=None, **_: (square(g), s),
            init=lambda params: jax.tree.map(lambda p: jnp.zeros(p.shape), params),
        ),
        r"the state at \['matrix'\] does not lie beside its weight on several devices",
    ),
    "on one device": (
        phi(lambda g, s, p=None, **_: (square(g), s), init=on_one_device_only),
        "phi does not survive 8 devices: NotImplementedError: one device",
    ),
    "other values on several devices": (
        phi(
            lambda g, s, p=None, **_: (jax.tree.map(lambda x: s * x, square(g)), s),
            init=lambda params: jnp.asarray(float(devices_of(params))),
        ),
        "phi on 8 devices differs from phi on one at leaf",
    ),
    "contracts what is spread": (
        phi(lambda g, s, p=None, **_: (square(jax.tree.map(times_its_own_correlation, g)), s)),
        r"phi does not survive 8 devices of an Explicit mesh: \w*Error",
    ),
    "of another type after an update": (
        phi(
            lambda g, s, p=None, **_: (square(g), jnp.sum(jnp.abs(g["matrix"]), axis=1)),
            init=lambda params: jnp.zeros(params["matrix"].shape[0]),
        ),
        r"the state at .* has the type \S* after init and \S*devices\S* after update on an Explicit mesh",
    ),
    "narrow": (
        phi(lambda g, s, p=None, **_: (jax.tree.map(jnp.abs, g), s)),
        "bfloat16: phi has dtype bfloat16",
    ),
    "negative": (
        phi(lambda g, s, p=None, **_: (jax.tree.map(lambda x: -2.0 * x, square(g)), s)),
        "is not positive and finite at leaf",
    ),
    "singular": (
        phi(lambda g, s, p=None, **_: (jax.tree.map(lambda x: 1 / x, square(g)), s)),
        r"not positive and finite .*at zero gradients",
    ),
    "structure": (
        phi(lambda g, s, p=None, **_: ({"matrix": square(g)["matrix"]}, s)),
        "the result of phi lacks leaf",
    ),
    "growing state": (
        phi(lambda g, s, p=None, **_: (square(g), (*s, jnp.zeros([])))),
        "the state changes its structure",
    ),
    "alias": (
        phi(lambda g, s, p=None, **_: (square(g), s), init=lambda params: params),
        "returns a parameter itself as state",
    ),
    "extra arguments": (
        phi(lambda g, s, p=None: (square(g), s)),
        "update raises TypeError",
    ),
    "abstract init": (
        phi(
            lambda g, s, p=None, **_: (square(g), s),
            init=lambda params: jax.tree.map(lambda p: p * 0, params),
        ),
        "does not survive jax.ShapeDtypeStruct",
    ),
    "placeholder": (
        phi(lambda g, s, p=None, **_: (square(g), s), init=lambda params: jax.tree.leaves(params)[0] * 1),
        "does not survive optax.tree.map_params",
    ),
    "impure": (
        phi(
            lambda g, s, p=None, **_: (
                jax.tree.map(lambda x: x + isinstance(x, jax.core.Tracer), square(g)),
                s,
            )
        ),
        "under jit differs",
    ),
    "vmap": (
        phi(lambda g, s, p=None, **_: (jax.tree.map(on_the_host, square(g)), s)),
        r"init and update do not survive jax\.vmap: NotImplementedError",
    ),
    "init": (
        phi(lambda g, s, p=None, **_: (square(g), s), init=lambda params: params["no"]),
        "init raises KeyError",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_breach_is_said_in_words(name):
    broken, words = BROKEN[name]
    with pytest.raises(AssertionError, match=words):
        check_phi(broken)


MEMORY = {}


def remember(gradients, state, params=None, **extra_args):
    """A running maximum in Python's memory, where jit, scan and checkpoints do not see it."""
    if not isinstance(jax.tree.leaves(gradients)[0], jax.core.Tracer):
        MEMORY["calls"] = MEMORY.get("calls", 0) + 1
    return jax.tree.map(lambda x: x + (MEMORY["calls"] > 30) * 1.0, square(gradients)), state


def test_what_is_remembered_outside_of_the_state_is_seen():
    MEMORY.clear()
    with pytest.raises(AssertionError, match=r"from a restored state differs at leaf .*not in its state"):
        check_phi(phi(remember), steps=24)  # 24 and 3 * 2 updates, then the restored one


NEEDY = {
    "gradients_at_previous_params": ro.phi.secant_curvature,
    "obj_fn": ro.phi.hutchinson_curvature,
    "outputs_fn": ro.phi.gauss_newton_curvature,
    "per_example_gradients": ro.phi.rwalk,
    "output_norm_gradients": ro.phi.memory_aware_synapses,
    "perturbed_gradients": ro.phi.mesu,
    "inputs": ro.phi.idbd,
    "activities": ro.phi.sliding_threshold,
    "task_boundary": ro.phi.synaptic_intelligence,
}


@pytest.mark.parametrize("need", NEEDY)
def test_what_a_phi_declares_to_need_is_made(need):
    made = NEEDY[need]()
    assert need in made.needs
    check_phi(made, alpha=1e-3, steps=4)


def test_every_name_of_the_vocabulary_is_made_in_its_shape():
    params = {"conv": {"kernel": jnp.ones([3, 3, 2, 5]), "bias": jnp.ones(5)}}
    heard = {}

    def update(gradients, state, params=None, *, an_argument_that_no_phi_knows=None, **extra_args):
        heard.update(extra_args)
        return square(gradients), state

    asks = ro.phi.Phi(lambda params: (), update, name="asks", needs=ro.phi.EXTRA_ARGUMENTS)
    check_phi(asks, params, steps=3)
    assert set(heard) == set(ro.phi.EXTRA_ARGUMENTS)
    heard.clear()
    check_phi(asks, params, steps=3, value=3.0)
    assert heard["value"] == 3.0  # what is given is not made
    shapes = {
        name: jax.tree.map(jnp.shape, heard[name]["conv"])
        for name in ("inputs", "activities", "perturbations", "per_example_gradients")
    }
    whole = {"kernel": (2, 3, 3, 2, 5), "bias": (2, 5)}
    assert shapes == {
        "inputs": {"kernel": (2, 3, 3, 2), "bias": ()},
        "activities": {"kernel": (2, 5), "bias": (2, 5)},
        "perturbations": whole,
        "per_example_gradients": whole,
    }


@pytest.mark.parametrize(
    "of_weight",
    [lambda w: w, lambda w: w**3, lambda w: 1 / w, jnp.log],
    ids=["no magnitude", "odd power", "inverse", "logarithm"],
)
def test_weights_have_both_signs_and_are_0(of_weight):
    wrong = optax.stateless(lambda g, p: jax.tree.map(lambda w: of_weight(w.astype(jnp.float32)), p))
    with pytest.raises(AssertionError, match="is not positive and finite"):
        check_phi(wrong)


def test_weights_move():
    """A phi of their change is 0 at weights that stand, whatever its sign."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jnp.zeros([], jnp.int32)

    def update(gradients, state, params=None, **extra_args):
        before, count = state

        def change(w, b):
            return jnp.where(count == 0, 0.0, -100 * jnp.abs(w.astype(jnp.float32) - b.astype(jnp.float32)))

        return jax.tree.map(change, params, before), (jax.tree.map(jnp.array, params), count + 1)

    with pytest.raises(
        AssertionError, match=r"not positive and finite .* \(at ordinary gradients, update 2\)"
    ):
        check_phi(ro.phi.Phi(init, update, name="change"))


def test_a_phi_of_the_weights_alone_needs_them():
    """Without them ``jax.tree.map`` returns None, and raises nothing."""
    of_weights = optax.stateless(lambda g, p: jax.tree.map(lambda w: jnp.abs(w.astype(jnp.float32)), p))
    assert check_phi(of_weights).needs_params


def test_a_need_that_is_not_declared_is_seen():
    def update(gradients, state, params=None, *, obj_fn, **extra_args):
        return square(gradients), state

    with pytest.raises(AssertionError, match=r"update raises TypeError: .*obj_fn"):
        check_phi(phi(update))
    check_phi(ro.phi.Phi(lambda params: (), update, name="declared", needs=["obj_fn"]), steps=3)


@pytest.mark.parametrize(
    "params", [{"k": jnp.ones([0, 3]), "b": jnp.ones(3)}, {}], ids=["no inputs", "empty"]
)
@pytest.mark.parametrize("factory", [ro.phi.sliding_threshold, ro.phi.mesu, ro.phi.online_ewc])
def test_a_model_without_weights_is_no_fault_of_the_phi(factory, params):
    check_phi(factory(), params, steps=2)


def test_a_factory_that_was_not_called():
    with pytest.raises(TypeError, match="has to be called"):
        check_phi(ro.phi.activity)
