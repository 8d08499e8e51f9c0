"""The bias of a hidden layer is found by the name, or the place, that it shares with the kernel."""

import jax
import jax.numpy as jnp
import pytest

from riemann_optax.wrappers._hidden_layers import hidden_layers

KERNEL, VECTOR, HEAD = jnp.zeros([4, 3]), jnp.zeros(3), jnp.zeros([3, 2])


@pytest.mark.parametrize(
    ("params", "bias"),
    [
        ({"w1": KERNEL, "b1": VECTOR, "b2": VECTOR, "w2": HEAD}, "['b1']"),
        ({"W_1": KERNEL, "b_1": VECTOR, "W_2": HEAD}, "['b_1']"),
        ({"hidden_w": KERNEL, "hidden_b": VECTOR, "out_w": HEAD, "out_b": VECTOR}, "['hidden_b']"),
        ({"kernel_x": KERNEL, "bias_x": VECTOR, "bias_a": VECTOR, "kernel_y": HEAD}, "['bias_x']"),
        ({"kernel_b": KERNEL, "bias_b": VECTOR, "kernel_c": HEAD}, "['bias_b']"),
        ({"hidden": {"kernel": KERNEL, "a": VECTOR, "bias": VECTOR}, "head": HEAD}, "['hidden']['bias']"),
        ({"hidden": {"table": KERNEL, "b": VECTOR}, "head": HEAD}, "['hidden']['b']"),
        ([(KERNEL, VECTOR), (HEAD, jnp.zeros(2))], "[0][1]"),
        ([KERNEL, VECTOR, HEAD, jnp.zeros(2)], "[1]"),
        ([KERNEL, HEAD, VECTOR], None),  # which is not beside it
        ([KERNEL, VECTOR, HEAD], None),  # which may be the scale of a norm
        ({"fc1.weight": KERNEL, "fc1.bias": VECTOR, "fc2.weight": HEAD}, "['fc1.bias']"),
        ({"hidden_w": KERNEL, "hidden_b": VECTOR, "bias": VECTOR, "out_w": HEAD}, "['hidden_b']"),
        ({"b": VECTOR, "w": jnp.zeros([5, 7]), "w1": KERNEL, "b1": VECTOR, "w2": HEAD}, "['b1']"),
        ({"w1": KERNEL, "w2": HEAD, "b2": VECTOR}, None),
        ({"kernel": {"kernel": KERNEL, "scale": VECTOR}, "head": HEAD}, None),
    ],
)
def test_of_a_hidden_layer(params, bias):
    outgoing = {"w1": "w2"} if "w" in params else None
    (layer,) = hidden_layers(params, outgoing, "flax")
    path, _ = jax.tree_util.tree_leaves_with_path(params)[layer.bias.leaf] if layer.bias else (None, None)
    assert (path and jax.tree_util.keystr(path)) == bias
