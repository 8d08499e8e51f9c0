"""One reading of axes for everything that reduces: layers, heads and tokens do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax import _axes

LOOKED_UP, CHANNELS = True, False  # whether rows are looked up; a convolution's have channels


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("['bias']", (7,), ((0,), ())),
        ("['scale']", (), ((), ())),
        ("['layers']['bias']", (12, 64), ((1,), ())),
        ("['layers']['norm']['scale']", (12, 64), ((1,), ())),
        ("['query']['bias']", (4, 16), ((1,), ())),
        ("['kernel']", (3, 5), ((0,), (1,))),
        ("['anything']", (3, 5), ((0,), (1,))),
        ("['embed']['embedding']", (100, 8), ((0,), (1,), LOOKED_UP)),
        ("['pos_embedding']", (1, 100, 8), ((1,), (2,), LOOKED_UP)),
        ("['patch_embedding']['kernel']", (4, 4, 3, 8), ((0, 1, 2), (3,), CHANNELS, (0, 1))),
        ("['conv']['kernel']", (3, 8, 16), ((0, 1), (2,), CHANNELS, (0,))),
        ("['Conv_0']['kernel'].value", (3, 3, 8, 16), ((0, 1, 2), (3,), CHANNELS, (0, 1))),
        ("['query']['kernel']", (4, 2, 3), ((0,), (1, 2))),
        ("['query']['kernel']", (12, 64, 64), ((1,), (2,))),  # dense layers in a scan
        # A pointwise convolution.
        ("['query']['kernel']", (1, 1, 64, 64), ((0, 1, 2), (3,), CHANNELS, (0, 1))),
        ("['out']['kernel']", (12, 64, 64), ((1,), (2,))),
        ("['out']['kernel']", (3, 3, 64, 64), ((0, 1, 2), (3,), CHANNELS, (0, 1))),
        ("['layers']['out']['kernel']", (12, 4, 16, 64), ((1, 2), (3,))),
        # Layers of a scan on axis 0, and on axis 1 as in T5X and MaxText.
        ("['layers']['query']['kernel']", (12, 768, 12, 64), ((1,), (2, 3))),
        ("['layers']['query']['kernel']", (768, 12, 12, 64), ((0,), (2, 3))),
        ("['layers']['key']['kernel']", (32, 4096, 8, 128), ((1,), (2, 3))),
        ("['layers']['key']['kernel']", (4096, 32, 8, 128), ((0,), (2, 3))),
        ("['layers']['query']['kernel']", (32, 4, 4, 8), ((0,), (2, 3))),
        ("['layers']['out']['kernel']", (24, 12, 64, 768), ((1, 2), (3,))),
        ("['layers']['out']['kernel']", (12, 24, 64, 768), ((0, 2), (3,))),
        ("['moe']['experts']['kernel']", (12, 8, 64, 256), ((2,), (3,))),
        ("['q_einsum']['w']", (8, 64, 16), ((1,), (2,))),
        ("['conv1d']['kernel']", (12, 3, 8, 8), ((1, 2), (3,), CHANNELS, (1,))),  # twelve of one dimension
    ],
)
def test_conventions_of_flax(name, shape, axes):
    assert ro.kernel_axes(name, jnp.zeros(shape)) == ro.MatrixAxes(*axes)


@pytest.mark.parametrize(
    ("preset", "path", "shape", "axes"),
    [
        ("equinox", "weight", (5, 3), ((1,), (0,))),
        ("equinox", "bias", (5,), ((0,), ())),
        ("equinox", "bias", (2, 5), ((1,), ())),
        ("equinox", "bias", (5, 1, 1), ((0, 1, 2), ())),
        ("equinox", "weight", (5, 3, 2, 2), ((1, 2, 3), (0,), CHANNELS, (2, 3))),
        ("equinox", "weight", (7, 5, 3), ((2,), (1,))),  # layers of a filter_vmap
        ("equinox", "conv/weight", (5, 3, 2), ((1, 2), (0,), CHANNELS, (2,))),
        ("equinox", "norm/weight", (7, 5), ((1,), ())),
        ("equinox", "embedding/weight", (100, 8), ((0,), (1,), LOOKED_UP)),
        ("convolution", "smooth/kernel", (3, 8, 16), ((0, 1), (2,), CHANNELS, (0,))),
        ("convolution", "smooth/kernel", (3, 3, 8, 16), ((0, 1, 2), (3,), CHANNELS, (0, 1))),
        ("convolution", "smooth/bias", (16,), ((0,), ())),
        ("haiku", "linear/w", (3, 5), ((0,), (1,))),
        ("haiku", "linear/b", (2, 5), ((1,), ())),
        ("haiku", "layer_norm/offset", (2, 5), ((1,), ())),
        ("haiku", "net/~/conv1_d/w", (3, 8, 16), ((0, 1), (2,), CHANNELS, (0,))),
        ("haiku", "embed/embeddings", (100, 8), ((0,), (1,), LOOKED_UP)),
        ("scanned", "anything", (2, 3, 5), ((1,), (2,))),
        ("equinox_scanned", "layers/weight", (2, 5, 3), ((2,), (1,))),
        ("equinox_scanned", "layers/bias", (2, 5), ((1,), ())),
        ("equinox_scanned", "first/weight", (3, 8, 4, 5), ((2, 3), (1,), CHANNELS, (3,))),
        ("equinox_scanned", "conv/weight", (2, 8, 6, 5), ((2, 3), (1,), CHANNELS, (3,))),
        ("equinox_convolution", "smooth/weight", (8, 6, 5), ((1, 2), (0,), CHANNELS, (2,))),
        ("equinox_convolution", "patch/weight", (8, 6, 2, 2), ((1, 2, 3), (0,), CHANNELS, (2, 3))),
        ("equinox_convolution", "smooth/bias", (8, 1), ((0, 1), ())),
        ("equinox_convolution", "smooth/bias", (8,), ((0,), ())),
        ("scanned", "anything", (2, 5), ((1,), ())),
        ("scanned", "anything", (2,), ((), ())),
        ("scanned", "conv/kernel", (2, 3, 8, 16), ((1, 2), (3,), CHANNELS, (1,))),
        ("scanned", "embed/embedding", (2, 100, 8), ((1,), (2,), LOOKED_UP)),
        (None, "kernel", (3, 5), None),
        (ro.MatrixAxes((1,), (0,)), "kernel", (3, 5), ((1,), (0,))),
        ({"weight": "equinox"}, "weight", (3, 5), ((1,), (0,))),
        ({"net": {"weight": "equinox"}}, "net/weight", (3, 5), ((1,), (0,))),
        ({"bias": None}, "bias", (5,), None),
    ],
)
def test_presets_functions_and_dictionaries(preset, path, shape, axes):
    *modules, last = path.split("/")
    module = "/".join(modules)
    tree = {module: {last: jnp.zeros(shape)}} if modules else {last: jnp.zeros(shape)}
    assert _axes.read(tree, preset) == [None if axes is None else ro.MatrixAxes(*axes)]


def test_what_a_dictionary_does_not_name_is_read_as_flax_does():
    tree = {"net": {"weight": jnp.zeros([3, 5]), "w": jnp.zeros([3, 5])}, "w": jnp.zeros([3, 5])}
    flax, equinox = ro.MatrixAxes((0,), (1,)), ro.MatrixAxes((1,), (0,))
    assert _axes.read(tree, {"net": {"weight": "equinox"}}) == [flax, equinox, flax]  # net/w, net/weight, w


def test_what_a_dictionary_does_not_name_is_what_those_around_it_say():
    tree = {"enc": {"patch": jnp.zeros([3, 5]), "lin": jnp.zeros([3, 5])}, "head": jnp.zeros([3, 5])}
    flax, equinox = ro.MatrixAxes((0,), (1,)), ro.MatrixAxes((1,), (0,))
    assert _axes.read(tree, {"*": "equinox", "enc": {"patch": "flax"}}) == [equinox, flax, equinox]
    assert _axes.read(tree, {"en*": {"l*": "equinox"}, "enc": {"patch": "equinox"}}) == [
        equinox,
        equinox,
        flax,
    ]


def test_a_name_with_a_star_means_all_that_it_matches_and_nothing_else_names():
    block = {"mix": {"weight": jnp.zeros([3, 5])}}
    tree = {"blocks": [block] * 3, "head": {"weight": jnp.zeros([3, 5])}, "header": jnp.zeros([3, 5])}
    flax, equinox = ro.MatrixAxes((0,), (1,)), ro.MatrixAxes((1,), (0,))
    axes = {"blocks": {"*": {"mix": "equinox"}, 1: "flax"}, "head*": "equinox", "header": "flax"}
    assert _axes.read(tree, axes) == [equinox, flax, equinox, equinox, flax]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"block*": "equinox"},
            r"^axes has the name 'block\*', and the parameters there have 'head', 'net':",
        ),
        ({"n*t": {"*": {"bias": None}, 2: None}}, r"^axes\['n\*t'\] has the name 2, .* have 0, 1:"),
        ({"nett": "equinox"}, r"^axes has the name 'nett', and the parameters there have 'head', 'net':"),
        (
            {"net": {"0": {"weights": None}}},
            r"^axes\['net'\]\['0'\] has the name 'weights', .* 'bias', 'weight':",
        ),
        ({"net": {2: "equinox"}}, r"^axes\['net'\] has the name 2, .* have 0, 1:"),
        (
            {"head": {"w": {"x": None}}},
            r"^axes\['head'\]\['w'\] has the name 'x', .* no names, for they are one",
        ),
    ],
)
@pytest.mark.parametrize("box", [lambda leaf: leaf, nnx.Param], ids=["bare", "boxed"])
def test_a_name_that_is_not_there_is_refused_at_init(axes, message, box):
    layer = {"weight": box(jnp.zeros([5, 3])), "bias": box(jnp.zeros(5))}
    params = {"net": [layer, layer], "head": {"w": box(jnp.zeros([3, 5]))}}
    with pytest.raises(ValueError, match=message):
        ro.phi.factored_activity(axes=axes).init(params)
    right = {"net": {"0": {"weight": "equinox"}, 1: {"bias": None}}, "head": {"w": "haiku"}}
    ro.phi.factored_activity(axes=right).init(params)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"net": False, "head": {"w": True}}),
        lambda tx: optax.masked(tx, {"net": {"weight": False, "bias": True}, "head": {"w": True}}),
        lambda tx: optax.partition({"a": tx, "b": tx}, {"net": "a", "head": {"w": "b"}}),
        lambda tx: optax.partition({"a": tx, "b": tx}, {"net": "a", "head": "a"}),  # "b" has nothing
        lambda tx: ro.in_eigenbasis(tx, axes={"net": {"weight": "equinox"}}),
    ],
    ids=["module masked", "array masked", "partition", "empty part", "eigenbasis"],
)
@pytest.mark.parametrize("rule", ["factored_activity", "conformal"])
def test_one_dictionary_serves_every_part_of_a_model(wrap, rule):
    axes = {"net": {"weight": "equinox"}, "head": {"w": "haiku"}}
    tx = wrap(optax.chain(REDUCING[rule](axes), ro.scale_by_inverse_metric()))
    params = {"net": {"weight": jnp.ones([5, 3]), "bias": jnp.ones(5)}, "head": {"w": jnp.ones([3, 5])}}
    tx.update(params, tx.init(params), params)


def test_what_a_filter_leaves_out_may_be_named():
    """An Equinox model without a bias, or with a module that is not trained, has None in their places."""
    params = {"net": {"weight": jnp.ones([5, 3]), "bias": None}, "head": None}
    phi = ro.phi.factored_activity(axes={"net": {"bias": None}, "head": {"weight": "equinox"}})
    phi.update(params, phi.init(params))


def test_names_are_the_same_before_and_after_flax_takes_the_weights_out_of_their_boxes():
    heard = []

    def choose(name, leaf):
        heard.append(name)
        return ro.kernel_axes(name, leaf)

    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model,
        optax.chain(
            ro.scale_by_metric(ro.phi.per_neuron(axes=choose), 1.0), optax.scale_by_learning_rate(0.1)
        ),
        wrt=nnx.Param,
    )
    at_init = set(heard)
    heard.clear()
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones([1, 2])) ** 2))(model))
    assert set(heard) == at_init == {"['bias']", "['kernel']"}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("torch", r"^axes must be one of 'flax', 'equinox'"),
        ({"net": {"w": "torch"}}, r"^axes must be one of 'flax', 'equinox'"),
        (3, r"^axes must be one of .*, got 3"),
        (lambda name, leaf: ro.MatrixAxes((0,), (2,)), r"^axes of leaf \['w'\], which has shape \(2, 3\)"),
        (ro.MatrixAxes((0,), (1,), window=(1,)), r"^axes of leaf \['w'\]: the window \(1,\) must be among"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda axes: ro.phi.factored_activity(axes=axes),
        lambda axes: ro.phi.per_neuron(axes=axes),
        lambda axes: ro.phi.sliding_threshold(axes=axes),
        lambda axes: ro.in_eigenbasis(optax.identity(), axes=axes),
    ],
)
def test_axes_that_cannot_be_are_refused(make, axes, message):
    with pytest.raises(ValueError, match=message):
        make(axes).init({"w": jnp.zeros([2, 3])})


# --- what reduces, by the same reading ---


def stage_1(phi=None, alpha=3.0, **options):
    return ro.compute_metric(phi or ro.phi.activity(decay=0.5), alpha, **options)


# Each as a chain that ends with a metric, made with ``axes``.
REDUCING = {
    "factored_activity": lambda axes: stage_1(ro.phi.factored_activity(decay=0.5, axes=axes)),
    "per_neuron": lambda axes: stage_1(ro.phi.per_neuron(decay=0.5, axes=axes)),
    "unit_mean": lambda axes: stage_1(ro.phi.unit_mean(ro.phi.activity(), over="neuron", axes=axes)),
    "idbd:gradients": lambda axes: stage_1(ro.phi.idbd(form="gradients", meta_rate=0.1, axes=axes), 1.0),
    "conformal": lambda axes: stage_1(conformal="neuron", axes=axes),
    "normalize_metric": lambda axes: optax.chain(stage_1(), ro.normalize_metric("neuron", axes=axes)),
    "competitive_plasticity": lambda axes: optax.chain(
        stage_1(), ro.competitive_plasticity(0.4, "neuron", axes=axes)
    ),
    "sliding_threshold": lambda axes: stage_1(ro.phi.sliding_threshold(decay=0.5, axes=axes)),
    "idbd": lambda axes: stage_1(ro.phi.idbd(meta_rate=0.1, axes=axes), 1.0),
}
reducing = pytest.mark.parametrize("rule", REDUCING)


def rates(rule, name, gradients, axes="flax", extra_axes=()):
    """Return ``1/E`` after each of several gradients of one leaf; ``extra_axes`` are missing from extras."""
    tx = REDUCING[rule](axes)
    state = tx.init({name: jnp.zeros(gradients[0].shape)})
    found = []
    for gradient in gradients:
        extra = {}
        argument = {"sliding_threshold": "activities", "idbd": "inputs"}.get(rule)
        if argument:  # the same for all weights that share a neuron or an input
            extra[argument] = {name: jnp.mean(gradient, axis=extra_axes[argument])}
        covectors, state = tx.update({name: gradient}, state, {name: gradient}, **extra)
        covector = covectors[name]
        found.append(jnp.broadcast_to(covector.inverse_metric, covector.shape))
    return np.stack(found)


def draw(shape, steps=3):
    return list(jax.random.normal(jax.random.key(0), (steps, *shape)) + 0.5)


def missing(fan_in, fan_out):
    return {"activities": fan_in, "inputs": fan_out}


@reducing
def test_layers_of_a_scan_do_not_see_each_other(rule):
    """Kernels (layers, in, out) and biases (layers, features) are as many arrays of their own."""
    kernels = [g * jnp.array([1.0, 10.0])[:, None, None] for g in draw((2, 3, 4))]
    together = rates(rule, "kernel", kernels, extra_axes=missing((1,), (2,)))
    biases = [g * jnp.array([1.0, 10.0])[:, None] for g in draw((2, 4))]
    stack = rates(rule, "bias", biases, extra_axes=missing((), ()))
    for layer in range(2):
        alone = rates(rule, "kernel", [g[layer] for g in kernels], extra_axes=missing((0,), (1,)))
        np.testing.assert_allclose(together[:, layer], alone, rtol=1e-5)
        alone = rates(rule, "bias", [g[layer] for g in biases], extra_axes=missing((), ()))
        np.testing.assert_allclose(stack[:, layer], alone, rtol=1e-5)


@reducing
def test_heads_of_a_query_are_outputs(rule):
    """(in, heads, size) is (in, heads * size)."""
    gradients = draw((4, 2, 3))
    name = "query_kernel"
    axes = {name: ro.MatrixAxes((0,), (1, 2))}
    found = rates(rule, name, gradients, axes, missing((0,), (1, 2)))
    flat = [g.reshape(4, 6) for g in gradients]
    expected = rates(rule, name, flat, "flax", missing((0,), (1,)))
    np.testing.assert_allclose(found.reshape(-1, 4, 6), expected, rtol=1e-5)


@reducing
def test_weights_of_equinox_are_transposed_kernels(rule):
    gradients = draw((5, 3))
    found = rates(rule, "weight", gradients, "equinox", missing((1,), (0,)))
    expected = rates(rule, "weight", [g.T for g in gradients], "flax", missing((0,), (1,)))
    np.testing.assert_allclose(np.swapaxes(found, 1, 2), expected, rtol=1e-5)


@reducing
def test_windows_of_a_convolution_are_fan_in(rule):
    gradients = draw((2, 2, 3, 4))
    found = rates(rule, "kernel", gradients, "flax", missing((0, 1, 2), (3,)))
    flat = [g.reshape(12, 4) for g in gradients]
    expected = rates(rule, "kernel", flat, "flax", missing((0,), (1,)))
    np.testing.assert_allclose(found.reshape(-1, 12, 4), expected, rtol=1e-5)


@pytest.mark.parametrize("rule", ["per_neuron", "unit_mean", "conformal", "normalize_metric"])
def test_an_array_that_is_no_matrix_is_as_many_single_weights(rule):
    gradients = draw((2, 3))
    found = rates(rule, "w", gradients, None)
    expected = rates(rule, "w", [g.reshape(6, 1, 1) for g in gradients], ro.MatrixAxes((1,), (2,)))
    np.testing.assert_allclose(found.reshape(-1, 6, 1, 1), expected, rtol=1e-5)


@pytest.mark.parametrize("rule", ["factored_activity", "per_neuron", "unit_mean", "conformal"])
def test_the_memory_of_a_rare_token_is_its_own(rule):
    """Row 0 gets a gradient at each update, row 1 once in 200: they move as under Adam, or alike."""
    options = {
        "factored_activity": {"phi": ro.phi.factored_activity(decay=0.99)},
        "per_neuron": {"phi": ro.phi.per_neuron(decay=0.99)},
        "unit_mean": {"phi": ro.phi.unit_mean(ro.phi.activity(decay=0.99), over="neuron")},
        "conformal": {"phi": ro.phi.activity(decay=0.99), "conformal": "neuron"},
    }[rule]
    phi = options.pop("phi")
    tx = optax.chain(ro.compute_metric(phi, 1e4, **options), ro.scale_by_inverse_metric())
    params = {"embedding": jnp.zeros([2, 4])}
    signs = jnp.array([1.0, -1.0, 1.0, -1.0])

    def step(state, number):
        occurs = jnp.array([[True], [number == 199]])
        gradients = {"embedding": jnp.where(occurs, signs, 0.0)}
        updates, state = tx.update(gradients, state, params)
        return state, updates["embedding"]

    _, steps = jax.lax.scan(step, tx.init(params), jnp.arange(200))
    found = np.abs(steps[-1])
    # Adam remembers 1 - decay of the square of a gradient that came once: a step of about 10 times the other.
    ratio = found[1] / found[0]
    if rule == "unit_mean":  # a row's mean is taken out: it is gone from the rate altogether
        np.testing.assert_allclose(ratio, 1, rtol=1e-3)
    else:
        np.testing.assert_allclose(ratio, 1 / np.sqrt(0.01 / (1 - 0.99**200)), rtol=0.02)
