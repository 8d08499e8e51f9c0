"""Where images have their channels first, the activities of a layer have them last, as of any other."""

import functools

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import pytest

import riemann_optax as ro


def form(first):
    return {"data_format": "channels_first" if first else "channels_last"}


NORMS = {
    "group": lambda first: hk.GroupNorm(2, **form(first)),
    "instance": lambda first: hk.InstanceNorm(True, True, **form(first)),
    "layer": lambda first: hk.LayerNorm((1, 2, 3), True, True, param_axis=1 if first else -1),
    "rms": lambda first: hk.RMSNorm(1 if first else -1, param_axis=1 if first else -1),
}


def network(x, norm, first):
    """Two convolutions on maps of 8 x 8 with 8 channels: no shape tells which axis is which."""
    h = hk.Conv2D(8, 3, data_format="NCHW" if first else "NHWC")(x)
    h = jax.nn.relu(NORMS[norm](first)(h))
    h = jax.nn.relu(hk.Conv2D(8, 3, data_format="NCHW" if first else "NHWC")(h))
    return hk.Linear(2)(h.mean((2, 3) if first else (1, 2)))


def activities(params, batch, norm, first):
    net = hk.without_apply_rng(hk.transform(functools.partial(network, norm=norm, first=first)))
    like = net.init(jax.random.key(1), batch)  # a bias has two axes more where channels are first
    params = jax.tree.map(lambda leaf, one: leaf.reshape(one.shape), params or like, like)
    step = ro.value_and_grad(lambda params, batch: jnp.mean(net.apply(params, batch) ** 2), "activities")
    return params, step(params, batch)[-1]["activities"]


@pytest.mark.parametrize("norm", NORMS)
def test_of_haiku(norm):
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 8))
    params, last = activities(None, images, norm, first=False)
    _, first = activities(params, jnp.moveaxis(images, -1, 1), norm, first=True)
    assert jax.tree.leaves(last)[0].std() > 0.01
    chex.assert_trees_all_close(first, last, rtol=1e-4, atol=1e-5)


def test_of_haiku_without_a_batch():
    image = jax.random.normal(jax.random.key(0), (8, 8, 8))
    net = {
        form: hk.without_apply_rng(hk.transform(lambda x, form=form: hk.Conv2D(8, 3, data_format=form)(x)))
        for form in ("NHWC", "NCHW")
    }
    params = net["NHWC"].init(jax.random.key(1), image)
    seen = []
    for form, batch in (("NHWC", image), ("NCHW", jnp.moveaxis(image, -1, 0))):
        own = net[form].init(jax.random.key(1), batch)
        own = jax.tree.map(lambda leaf, one: leaf.reshape(one.shape), params, own)
        step = ro.value_and_grad(lambda p, x, form=form: jnp.mean(net[form].apply(p, x) ** 2), "activities")
        seen.append(step(own, batch)[-1]["activities"])
    chex.assert_trees_all_close(*seen, rtol=1e-4, atol=1e-5)
