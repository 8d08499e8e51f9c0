"""Layers that are read as a chain, and those of which sizes do not tell."""

import ast
import re

import jax.numpy as jnp
import numpy as np
import pytest

from riemann_optax.wrappers._hidden_layers import hidden_layers

from .small_resets import kernels, reset


@pytest.mark.parametrize(
    ("params", "readers"),
    [
        (kernels(a=(4, 6), b=(3, 4)), {"b": "a"}),  # sizes fit in one way only
        (
            kernels(Dense_0=(5, 4), Dense_1=(4, 4), Dense_2=(4, 4)),
            {"Dense_0": "Dense_1", "Dense_1": "Dense_2"},
        ),
        (  # Linen, where the layers are nested in one expression
            kernels(Dense_0=(4, 4), Dense_1=(4, 4), Dense_2=(5, 4)),
            {"Dense_2": "Dense_1", "Dense_1": "Dense_0"},
        ),
    ],
)
def test_a_chain_is_read_from_sizes_or_numbers(params, readers):
    after, state = reset(params)
    assert state.resets == len(readers)
    for layer in params:
        changed = np.asarray(after[layer]["kernel"] != params[layer]["kernel"])
        expected = np.zeros_like(changed)
        if layer in readers:
            expected[:, -1] = True
        if layer in readers.values():
            expected[-1] = True
        np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize(
    "sizes",
    [
        {"encoder": (784, 64), "decoder": (64, 784), "classifier": (64, 10)},
        {"embed": (10, 32), "up": (32, 64), "down": (64, 32), "head": (32, 5)},  # head reads embed + down
        {"i": (10, 32), "h": (32, 32), "head": (32, 5)},  # a recurrent cell
    ],
    ids=["two heads", "residual", "recurrent"],
)
def test_one_chain_through_all_sizes_is_no_proof(sizes):
    """Each has one order in which every kernel fits behind another, and it is not how they are wired."""
    with pytest.raises(ValueError, match="it is not clear"):
        hidden_layers({name: {"kernel": jnp.ones(size)} for name, size in sizes.items()}, None, "flax")


@pytest.mark.parametrize(
    "sizes",
    [
        # A value network: the head has as many units as the images have channels.
        {"conv1": (3, 3, 1, 8), "conv2": (3, 3, 8, 16), "fc": (576, 32), "value": (32, 1)},
        # The same where the layers have numbers.
        {"layers_0": (3, 3, 3, 8), "layers_3": (288, 3)},
        # A model of dynamics: Dense_1 reads an action beside the 16 units of Dense_0.
        {"Dense_0": (4, 16), "Dense_1": (18, 32), "Dense_2": (32, 4)},
    ],
    ids=["flattened", "numbered", "concatenated"],
)
def test_a_chain_that_starts_in_the_middle_is_refused(sizes):
    with pytest.raises(ValueError, match="it is not clear"):
        hidden_layers({name: {"kernel": jnp.ones(size)} for name, size in sizes.items()}, None, "flax")


def test_three_layers_that_fit_in_one_way_are_proposed_not_taken():
    """What reads an action beside them would not fit, and the chain would begin behind it."""
    params = kernels(encoder=(5, 4), middle=(4, 3), head=(3, 2))
    with pytest.raises(ValueError, match="it is not clear from sizes alone") as error:
        hidden_layers(params, None, "flax")
    proposed = ast.literal_eval(re.search(r"outgoing=(\{.*\})", str(error.value))[1])
    assert proposed == {"encoder": "middle", "middle": "head"}
    assert [one.units for one in hidden_layers(params, proposed, "flax")] == [4, 3]
