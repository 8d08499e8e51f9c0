"""A chain put together wrongly says what to do, in one line that names the argument or the leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .small_chain import PARAMS, STAGE_1, update

HELP = (
    "the metric is still attached: move this transformation before compute_metric "
    "or after scale_by_inverse_metric, which the chain must have"
)


def shows_help(leaf="'kernel'"):
    """The whole message, which names a leaf first; where JAX trims the traceback it adds a note."""
    return pytest.raises(ro.MetricAttachedError, match=rf"^leaf \[{leaf}\]: {HELP}\.(\n|$)")


# Whatever Optax has that works on arrays. identity and snapshot look at nothing, and pass.
BETWEEN = {
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.1),
    "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
    "add_noise": lambda: optax.add_noise(0.1, 0.5, 0),
    "apply_every": lambda: optax.apply_every(2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 2),
    "centralize": optax.centralize,
    "clip": lambda: optax.clip(1.0),
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(1.0),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
    "ema": lambda: optax.ema(0.9),
    "freeze": lambda: optax.transforms.freeze({"kernel": True, "bias": False}),
    "keep_params_nonnegative": optax.keep_params_nonnegative,
    "masked": lambda: optax.masked(optax.clip(1.0), {"kernel": True, "bias": False}),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "multi_steps": lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "muon": lambda: optax.contrib.muon(0.1),
    "normalize_by_update_norm": optax.normalize_by_update_norm,
    "reduce_on_plateau": optax.contrib.reduce_on_plateau,
    "scale": lambda: optax.scale(0.1),
    "scale_by_adadelta": optax.scale_by_adadelta,
    "scale_by_adam": optax.scale_by_adam,
    "scale_by_adamax": optax.scale_by_adamax,
    "scale_by_adan": optax.scale_by_adan,
    "scale_by_amsgrad": optax.scale_by_amsgrad,
    "scale_by_belief": optax.scale_by_belief,
    "scale_by_distance_over_gradients": optax.scale_by_distance_over_gradients,
    "scale_by_factored_rms": optax.scale_by_factored_rms,
    "scale_by_lbfgs": optax.scale_by_lbfgs,
    "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(0.1),
    "scale_by_lion": optax.scale_by_lion,
    "scale_by_novograd": optax.scale_by_novograd,
    "scale_by_optimistic_gradient": optax.scale_by_optimistic_gradient,
    "scale_by_param_block_norm": optax.scale_by_param_block_norm,
    "scale_by_param_block_rms": optax.scale_by_param_block_rms,
    "scale_by_polyak": optax.scale_by_polyak,
    "scale_by_radam": optax.scale_by_radam,
    "scale_by_rms": optax.scale_by_rms,
    "scale_by_rprop": lambda: optax.scale_by_rprop(0.1),
    "scale_by_rss": optax.scale_by_rss,
    "scale_by_schedule": lambda: optax.scale_by_schedule(optax.constant_schedule(0.1)),
    "scale_by_sign": optax.scale_by_sign,
    "scale_by_sm3": optax.scale_by_sm3,
    "scale_by_stddev": optax.scale_by_stddev,
    "scale_by_trust_ratio": optax.scale_by_trust_ratio,
    "scale_by_yogi": optax.scale_by_yogi,
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "set_to_zero": optax.set_to_zero,
    "sgd": lambda: optax.sgd(0.1),
    "skip_nonfinite": lambda: ro.skip_nonfinite(optax.sgd(0.1)),
    "trace": lambda: optax.trace(0.9),
    "trace:nesterov": lambda: optax.trace(0.9, nesterov=True),
    "track_energy": ro.track_energy,
    "zero_nans": optax.zero_nans,
}
if hasattr(optax, "monitor"):  # younger than the oldest Optax supported
    BETWEEN["monitor"] = lambda: optax.monitor({"norm": optax.tree.norm})


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_a_transformation_between_the_stages(between, jit):
    tx = optax.chain(STAGE_1, between(), ro.scale_by_inverse_metric())
    state = tx.init(PARAMS)

    def call(gradients):
        return tx.update(gradients, state, PARAMS, value=jnp.ones([]))

    # Where Optax checks a leaf by itself it raises an error of its own, which prints the leaf.
    with pytest.raises(ValueError, match=HELP) as caught:
        (jax.jit(call) if jit else call)(PARAMS)
    assert "leaf ['bias']" in str(caught.value) or "leaf ['kernel']" in str(caught.value)


@pytest.mark.parametrize("stage_2", [ro.scale_by_inverse_metric(), ro.in_orthonormal_frame(optax.trace(0.9))])
def test_the_same_transformation_on_either_side(stage_2):
    for tx in (
        optax.chain(optax.clip(1.0), STAGE_1, stage_2),
        optax.chain(STAGE_1, stage_2, optax.clip(1.0)),
    ):
        updates, _ = update(tx)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


def test_identity_and_snapshot_touch_nothing():
    plain, _ = update(optax.chain(STAGE_1, ro.scale_by_inverse_metric()))
    looked = optax.chain(STAGE_1, optax.identity(), optax.snapshot("seen", len), ro.scale_by_inverse_metric())
    updates, state = update(looked)
    np.testing.assert_array_equal(updates["kernel"], plain["kernel"])
    assert optax.tree.get(state, "seen") == len(PARAMS)


def test_stage_2_forgotten():
    updates, _ = update(optax.chain(STAGE_1))
    with shows_help("'bias'"):
        optax.apply_updates(PARAMS, updates)
    with shows_help("'bias'"):
        optax.tree.norm(updates)
    with shows_help("'bias'"):
        optax.tree.scale(0.1, updates)
    with shows_help("'bias'"):
        jax.tree.map(jnp.add, PARAMS, updates)


WRAPPERS = {
    "multi_steps": lambda: optax.MultiSteps(STAGE_1, 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(STAGE_1, 2),
    "skip_nonfinite": lambda: ro.skip_nonfinite(STAGE_1),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_around_stage_1_alone(wrapper, jit):
    tx = wrapper()
    call = jax.jit(tx.update) if jit else tx.update
    state = tx.init(PARAMS)
    with shows_help("'bias'"):
        call(PARAMS, state, PARAMS)


@pytest.mark.parametrize("wrap", [optax.apply_if_finite, lambda tx, _: ro.skip_nonfinite(tx)])
def test_the_guards_around_both_stages(wrap):
    pair = optax.chain(STAGE_1, ro.scale_by_inverse_metric())
    np.testing.assert_allclose(update(wrap(pair, 2))[0]["kernel"], update(pair)[0]["kernel"])


def test_second_stage_1():
    message = r"compute_metric was given a gradient that carries a metric already .*'bias'.*multiply_metric"
    with pytest.raises(ro.MetricAttachedError, match=message):
        update(optax.chain(STAGE_1, STAGE_1, ro.scale_by_inverse_metric()))


NEEDS_A_METRIC = {
    "scale_by_inverse_metric": ro.scale_by_inverse_metric(),
    "in_orthonormal_frame": ro.in_orthonormal_frame(optax.identity()),
    "on_metric": ro.on_metric(optax.ema(0.9)),
    "on_gradient": ro.on_gradient(optax.ema(0.9)),
    "multiply_metric": ro.multiply_metric(abs),
    "normalize_metric": ro.normalize_metric(),
    "clip_metric": ro.clip_metric(high=2.0),
    "record_metric": ro.record_metric(),
}


@pytest.mark.parametrize("name", NEEDS_A_METRIC)
def test_no_metric_at_all(name):
    message = (
        f"^{name}: no leaf carries a metric, so the step would silently be Euclidean: put compute_metric"
    )
    with pytest.raises(ValueError, match=message):
        update(NEEDS_A_METRIC[name])


def test_stage_2_twice():
    with pytest.raises(ValueError, match=r"^scale_by_inverse_metric: no leaf carries a metric"):
        update(optax.chain(STAGE_1, ro.scale_by_inverse_metric(), ro.scale_by_inverse_metric()))


def test_split_without_a_metric():
    with pytest.raises(ValueError, match=r"^split: no leaf carries a metric"):
        ro.split(PARAMS)


def test_a_decay_that_is_1_in_float32_is_refused():
    for phi in (ro.phi.activity, ro.phi.factored_activity):
        with pytest.raises(ValueError, match=r"decay is 0\.99999999, which float32 rounds to 1"):
            phi(decay=1 - 1e-8)
    with jax.enable_x64(True):
        phi = ro.phi.activity(decay=1 - 1e-8)
        ones = jnp.ones(1, jnp.float64)
        np.testing.assert_allclose(phi.update(ones, phi.init(ones), ones)[0], 1.0, rtol=1e-6)


def test_extra_arguments_of_any_name_are_ignored():
    w = jnp.ones(2)
    tx = ro.scale_by_metric(ro.phi.maintenance_energy(), 1.0)
    for name in ("phi", "over", "other"):
        np.testing.assert_array_equal(tx.update(w, tx.init(w), w, **{name: 1})[0], [0.5, 0.5])
    pull = ro.add_anchored_weights(1.0, ro.anchor.initial_weights(), precision=ro.phi.maintenance_energy())
    np.testing.assert_array_equal(pull.update(w, pull.init(w), w, precision=1)[0], w)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True}, "nesterov=True is a kind of momentum"),
        (
            {"phi": ro.phi.activity(), "state_dtype": jnp.bfloat16},
            "state_dtype is for momentum and the default",
        ),
        ({"mask": {"w": True}}, "mask and decay_in_metric say how weights decay"),
    ],
)
def test_what_nothing_would_read_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ro.riemannian_sgd(0.1, **options)
    others = {"momentum": 0.9, "weight_decay": 0.1}
    ro.riemannian_sgd(0.1, **options, **others).init({"w": jnp.ones(3)})
