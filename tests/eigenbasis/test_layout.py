"""Which arrays are turned how: kernels of every kind, blocks, one side, vectors, and what is refused."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax.eigenbasis.account import account
from riemann_optax.eigenbasis.frame import Frame
from riemann_optax.eigenbasis.layout import LayoutRules
from riemann_optax.eigenbasis.schedule import operations, schedule

from .. import as_users


def shapes_of_bases(params, **options):
    state = jax.eval_shape(ro.in_eigenbasis(optax.identity(), **options).init, params)
    return [
        None if isinstance(basis, optax.MaskedNode) else basis.shape
        for basis in (state.left_bases, state.right_bases)
    ]


@pytest.mark.parametrize(
    ("shape", "options", "left", "right"),
    [
        ((6, 4), {}, (1, 6, 6), (1, 4, 4)),
        ((6, 4), {"sides": "smaller"}, None, (1, 4, 4)),
        ((4, 4), {"sides": "smaller"}, (1, 4, 4), None),
        ((6, 4), {"sides": "input"}, (1, 6, 6), None),
        ((6, 4), {"sides": "output"}, None, (1, 4, 4)),
        ((6, 4), {"sides": lambda name, leaf: "output"}, None, (1, 4, 4)),
        ((6, 4), {"max_size": 5}, None, (1, 4, 4)),
        ((50, 4), {"max_size": 16, "block_size": 16}, (5, 10, 10), (1, 4, 4)),
        ((53, 4), {"max_size": 16, "block_size": 16}, None, (1, 4, 4)),
        ((6, 1), {}, (1, 6, 6), None),
        ((2, 3, 4, 5), {}, (1, 24, 24), (1, 5, 5)),
        ((7, 3, 4), {}, (7, 1, 3, 3), (7, 1, 4, 4)),
        ((7, 3, 4), {"axes": lambda name, leaf: ro.MatrixAxes((0,), (2, 1))}, (1, 7, 7), (1, 12, 12)),
        ((3, 0), {}, None, None),
        ((0, 3, 4), {}, None, None),
        ((5,), {"sides": "vector"}, (1, 5, 5), None),
        ((5,), {"sides": "vector", "max_size": 4}, None, None),
        ((), {"sides": "vector"}, None, None),
    ],
)
def test_bases_have_the_sizes_of_the_sides(shape, options, left, right):
    assert shapes_of_bases(jnp.zeros(shape), **options) == [left, right]


@pytest.mark.parametrize("make", [ro.riemannian_eigenbasis, ro.soap])
def test_a_model_flattened_into_one_vector_is_told_that_nothing_is_turned(make):
    params = {"kernel": jnp.zeros([60, 40]), "bias": jnp.zeros(40)}
    with pytest.warns(UserWarning, match=r"in_eigenbasis turns nothing.*Leave out optax\.flatten"):
        optax.flatten(make(0.1)).init(params)
    make(0.1).init(params)  # a warning is an error here
    make(0.1).init({"bias": params["bias"]})


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("['attention']['query']['kernel']", (64, 4, 16), ((0,), (1, 2))),
        ("['attention']['value']['kernel'].value", (64, 4, 16), ((0,), (1, 2))),
        ("['attention']['out']['kernel']", (4, 16, 64), ((0, 1), (2,))),
        ("['layers']['attention']['key']['kernel']", (12, 64, 4, 16), ((1,), (2, 3))),
        ("['layers']['up']['kernel'].value", (12, 64, 256), ((1,), (2,))),
        ("['layers']['conv']['kernel']", (12, 3, 3, 8, 16), ((1, 2, 3), (4,), False, (1, 2))),
    ],
)
def test_kernels_of_flax_are_read_by_their_conventions(name, shape, axes):
    assert ro.kernel_axes(name, jnp.zeros(shape)) == ro.MatrixAxes(*axes)


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4, 5), (7, 3, 4)])
def test_what_is_read_as_matrices_can_be_written_back(shape):
    axes = [ro.kernel_axes, lambda name, leaf: ro.MatrixAxes((1,), (0,))]
    for choose in axes:
        (layout,) = LayoutRules("both", choose, 8, 2).layouts(jnp.zeros(shape))
        x = jnp.arange(np.prod(shape)).reshape(shape)
        np.testing.assert_array_equal(layout.array(layout.matrices(x), shape), x)


def follower(shape, **options):
    """Return a compiled function from gradients to the updates made of them."""
    tx = ro.in_eigenbasis(optax.scale_by_adam(), update_every=2, **options)

    def step(state, gradient):
        updates, state = tx.update(gradient, state)
        return state, updates

    return as_users.jit(lambda g: jax.lax.scan(step, tx.init(jnp.zeros(shape)), g)[1])


def test_stacked_matrices_and_blocks_are_turned_each_by_itself():
    """A stack, and the blocks of a side of another matrix, are as many matrices."""
    with jax.enable_x64(True):
        gradients = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3, 4, 4)))
        alone = follower((4, 4), sides="input")
        expected = np.stack([alone(gradients[:, k]) for k in range(3)], 1)
        stacked = follower((3, 4, 4), sides="input")(gradients)
        np.testing.assert_allclose(stacked, expected, rtol=1e-6)
        blocked = follower((12, 4), sides="input", max_size=4, block_size=4)
        rows = blocked(gradients.reshape(6, 12, 4))
        np.testing.assert_allclose(rows, expected.reshape(6, 12, 4), rtol=1e-6)


def test_refreshes_are_spread_over_the_steps():
    params = {f"{index}": jnp.zeros([4, 4]) for index in range(5)}
    tx = ro.in_eigenbasis(optax.identity(), update_every=5, decay=0.5)
    update = as_users.jit(tx.update)
    random = np.random.default_rng(0)
    state = tx.init(params)
    changed = []
    for _ in range(6):
        gradients = jax.tree.map(lambda p: jnp.asarray(random.standard_normal(p.shape), p.dtype), params)
        _, new = update(gradients, state, params)
        before, after = (jax.tree.leaves((s.left_bases, s.right_bases)) for s in (state, new))
        changed.append(sum(bool(jnp.any(a != b)) for a, b in zip(before, after, strict=True)))
        state = new
    assert changed == [10, 2, 2, 2, 2, 2]


def test_narrow_factors_and_bases_stay_narrow():
    tx = ro.in_eigenbasis(optax.trace(0.9), state_dtype=jnp.bfloat16)
    params = jnp.ones([4, 3])
    updates, state = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
    squares = jax.tree.leaves((state.left_factors, state.right_factors, state.left_bases, state.right_bases))
    assert [square.dtype for square in squares] == [jnp.bfloat16] * 4
    assert updates.dtype == state.inner.trace.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": "left"}, r"^sides must be one of"),
        ({"sides": lambda name, leaf: "left"}, r"^sides of the only leaf must be one of"),
        ({"axes": lambda name, leaf: ro.MatrixAxes((0,), (2,))}, r"^axes of the only leaf, which has shape"),
        ({"decay": 1.0}, r"^decay must be"),
        ({"update_every": 0}, r"^update_every must be"),
        ({"max_size": 8, "block_size": 9}, r"^block_size must be"),
        ({"state_dtype": jnp.int8}, r"^state_dtype must be a real floating-point dtype"),
        ({"second_moments": "drop"}, r"^second_moments must be one of"),
        ({"correlate": "noise"}, r"^correlate must be one of"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ro.in_eigenbasis(optax.identity(), **options).init(jnp.zeros([2, 3]))


def test_what_cannot_be_turned_is_refused():
    params = jnp.ones([2, 3])
    with pytest.raises(TypeError, match="real matrices"):
        ro.in_eigenbasis(optax.identity()).init(params.astype(jnp.complex64))
    tx = ro.in_eigenbasis(ro.phi.idbd())
    with pytest.raises(ValueError, match="the extra argument inputs belongs to single weights"):
        tx.update(params, tx.init(params), params, inputs=jnp.ones([2]))
    open_chain = ro.in_eigenbasis(ro.compute_metric(ro.phi.activity()))
    with pytest.raises(ro.MetricAttachedError, match="the metric is still attached"):
        jax.eval_shape(open_chain.update, params, open_chain.init(params), params)


def test_gradients_of_examples_and_functions_of_the_weights_are_turned_too():
    """And what has been turned can be turned back."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((n, n)))[0].astype(np.float32) for n in (3, 2))
    weights, examples = random.standard_normal((3, 2)), random.standard_normal((5, 3, 2))
    weights, examples = {"w": jnp.asarray(weights, jnp.float32)}, {"w": jnp.asarray(examples, jnp.float32)}
    layouts = LayoutRules("both", ro.kernel_axes, 8, None).layouts(weights)
    frame = Frame(layouts, [left[None]], [right[None]], None)
    turned = frame.arguments(
        {
            "per_example_gradients": examples,
            "obj_fn": lambda p, power: jnp.sum(p["w"] ** power),
            "value": 3.0,
        },
        weights,
    )
    np.testing.assert_allclose(
        turned["per_example_gradients"]["w"], left.T @ examples["w"] @ right, rtol=1e-4, atol=1e-5
    )
    entered = frame.enter(weights)
    np.testing.assert_allclose(turned["obj_fn"](entered, 3), jnp.sum(weights["w"] ** 3), rtol=1e-4)
    np.testing.assert_allclose(frame.leave(entered, weights)["w"], weights["w"], rtol=1e-4, atol=1e-5)
    assert turned["value"] == 3.0


@pytest.mark.parametrize(
    ("shape", "options", "left", "right", "said"),
    [
        ((8192, 512), {}, None, (1, 512, 512), "inputs 8192 left alone (32 values of state per weight, and"),
        ((512, 2048), {}, (1, 512, 512), (1, 2048, 2048), "outputs 2048 turned: 33.6 MB of state"),
        ((512, 2048), {"max_state": 2}, (1, 512, 512), None, "outputs 2048 left alone (8 values of state"),
        ((784, 10), {}, None, (1, 10, 10), "outputs 10 turned: 800 B of state"),
        ((8192, 64), {"block_size": 512}, (16, 512, 512), (1, 64, 64), "turned in 16 blocks of 512 (256 val"),
        ((32768, 32768), {}, None, None, "operations per weight, and max_operations is 100000"),
        ((64, 64), {"max_size": 8}, None, None, "left alone (longer than max_size, 8)"),
        ((64, 64), {"sides": "smaller"}, (1, 64, 64), None, 'outputs 64 left alone (sides is "smaller")'),
    ],
)
def test_what_costs_too_much_is_left_alone_and_the_account_says_why(shape, options, left, right, said):
    assert shapes_of_bases(jax.ShapeDtypeStruct(shape, jnp.float32), **options) == [left, right]
    rules = LayoutRules(options.pop("sides", "both"), "flax", **options)
    (line,) = account(jax.ShapeDtypeStruct(shape, jnp.float32), rules, None, 10)
    assert said in line


def test_describe_shows_what_is_turned_and_what_could_not_be():
    params = {"w": jnp.ones([40, 2]), "b": jnp.ones(2)}
    tx = optax.chain(ro.in_eigenbasis(ro.scale_by_metric(ro.phi.activity(), 1.0)), optax.scale(-1.0))
    lines = ro.describe(tx, params).bases
    assert lines == (
        "['w'] (40, 2): inputs 40 left alone (40 values of state per weight, and max_state is 16); "
        "outputs 2 turned: 32 B of state, 960 FLOP an update, 112 FLOP every 10",
    )
    _, state = tx.update({"w": jnp.full([40, 2], jnp.nan), "b": jnp.ones(2)}, tx.init(params), params)
    shown = ro.describe(tx, params, state=state)
    assert shown.bases[1] == "1 times no orthonormal basis was found, and the old one was kept"
    assert "eigenbasis: 1 times no" in str(shown)


def jobs_of(shapes, **options):
    layouts = LayoutRules("both", "flax").layouts([jnp.zeros(shape) for shape in shapes])
    return schedule(layouts, [jnp.dtype("float32")] * len(shapes), **options)


def test_one_batch_holds_all_sides_of_one_size_and_step():
    """Of a dense kernel, a scanned one and a convolution: 8 is a side of each."""
    groups, period = jobs_of([(8, 8), (3, 8, 8), (2, 2, 2, 8)], update_every=1)
    assert period == 1
    assert [sorted((job.leaf, job.side) for job in group) for group in groups] == [
        [(0, "left"), (0, "right"), (1, "left"), (1, "right"), (2, "left"), (2, "right")]
    ]


def test_a_budget_spreads_the_refreshes_over_more_steps():
    one = 14 * 16**3
    _, unbounded = jobs_of([(16, 16)] * 6, update_every=2)
    assert unbounded == 2
    groups, period = jobs_of([(16, 16)] * 6, update_every=2, budget=one)
    assert period == 12
    assert sorted(job.slot for group in groups for job in group) == list(range(12))
    # A side of 32 takes eight times as much and is never divided: what else there is fits beside it or after.
    groups, period = jobs_of([(16, 16)] * 5 + [(32, 8)], update_every=1, budget=one)
    assert period == 3
    work = [0] * period
    for group in groups:
        work[group[0].slot] += sum(operations(job) for job in group)
    assert sorted(work) == [5 * one, 5 * one + 14 * 8**3, 8 * one]


def test_all_sides_can_be_refreshed_at_one_step():
    groups, period = jobs_of([(16, 16), (32, 4)], update_every=5, together=None)
    assert period == 5
    assert {job.slot for group in groups for job in group} == {0}


def test_what_is_read_by_default_is_warned_of_by_name():
    tx = ro.in_eigenbasis(optax.identity())
    kernels = {"conv": {"kernel": jnp.zeros([3, 3, 4, 8])}, "layers": {"kernel": jnp.zeros([7, 4, 8])}}
    with pytest.warns(UserWarning, match=r"\['layers'\]\['kernel'\] \(7, 4, 8\) as a stack of 7") as caught:
        tx.init(kernels)
    assert len(caught) == 1
    assert "['conv']" not in str(caught[0].message)
    with warnings.catch_warnings(action="error"):
        ro.in_eigenbasis(optax.identity(), axes={"layers": "scanned"}).init(kernels)
        ro.in_eigenbasis(optax.identity(), sides="none").init(kernels)


def test_a_complex_matrix_is_refused_by_name():
    params = {"a": jnp.ones([2, 3]), "b": jnp.ones([2, 3], jnp.complex64)}
    with pytest.raises(TypeError, match=r"and the leaf \['b'\] is complex|\['b'\] is complex"):
        ro.in_eigenbasis(optax.identity()).init(params)
    ro.in_eigenbasis(optax.identity(), sides=lambda name, leaf: "none" if "b" in name else "both").init(
        params
    )


def test_what_the_message_of_a_complex_matrix_says_trains_it():
    """``optax.masked`` passes gradients on as they are: a step of the full gradient uphill."""
    params = {"a": jnp.ones([2, 3]), "b": jnp.ones([2, 3], jnp.complex64)}

    def kind(name, leaf):
        return "none" if jnp.iscomplexobj(leaf) else "both"

    def label(params):
        return jax.tree.map(lambda leaf: "apart" if jnp.iscomplexobj(leaf) else "turned", params)

    rules = {"turned": ro.riemannian_eigenbasis(0.1), "apart": optax.adam(0.1)}
    for tx in (ro.riemannian_eigenbasis(0.1, sides=kind), optax.partition(rules, label)):
        weights, state = params, tx.init(params)
        for _ in range(5):
            gradients = jax.tree.map(lambda w: w - 2, weights)
            updates, state = tx.update(gradients, state, weights)
            weights = optax.apply_updates(weights, updates)
        for name in params:
            assert jnp.all(jnp.abs(weights[name] - 2) < 0.9)  # 1 at the start


@pytest.mark.parametrize(
    "other",
    [ro.riemannian_eigenbasis(0.1, sides="both"), ro.riemannian_eigenbasis(0.1, sides="none"), ro.soap(0.1)],
)
def test_a_state_of_other_sides_is_not_called_one_of_another_shape(other):
    params = {"w": jnp.ones((3, 2))}
    state = ro.riemannian_eigenbasis(0.1).init(params)
    with pytest.raises(
        ValueError, match=r"\['w'\] of shape \(3, 2\) has a basis here for other sides than in"
    ):
        other.update(params, state, params)


def test_arrays_that_are_read_alike_are_warned_of_together():
    """A model of many blocks would have a warning of thousands of characters."""
    block = {name: jnp.zeros([16, 4, 4]) for name in "qkv"}
    params = {"blocks": [block] * 24, "odd": jnp.zeros([3, 5, 7])}
    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        ro.riemannian_eigenbasis(0.1).init(params)
    (warning,) = caught
    assert r"['blocks'][0]['k'] and 71 more, each (16, 4, 4) as a stack of 16: inputs 4" in str(
        warning.message
    )
    assert "; ['odd'] (3, 5, 7) as a stack of 3: inputs 5, outputs 7, by default" in str(warning.message)
    assert len(str(warning.message)) < 600


REMEDY = re.compile(r'axes=(ro\.MatrixAxes\(.*?\)\)|"\w+")')


def warnings_of(make, axes, params):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(0.003, axes=axes).init(params)
    return [str(one.message) for one in caught if "in_eigenbasis reads" in str(one.message)]


@pytest.mark.parametrize("box", [lambda leaf: leaf, nnx.Param], ids=["bare", "boxed"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 3, 8, 8), (3, 3, 3, 4, 5)])
@pytest.mark.parametrize("make", [ro.riemannian_eigenbasis, ro.soap])
def test_what_is_said_of_the_only_array_can_be_followed(make, shape, box):
    """It has no module that could be named: each remedy is tried as it stands in the warning."""
    params = box(jnp.ones(shape))
    (said,) = warnings_of(make, "flax", params)
    assert said.startswith(f"in_eigenbasis reads the only leaf {shape} as ")
    remedies = [eval(found, {"ro": ro}) for found in REMEDY.findall(said)]
    assert remedies == [ro.kernel_axes("", jnp.ones(shape)), "scanned", "convolution"]
    for axes in remedies:
        assert not warnings_of(make, axes, params)
    assert shapes_of_bases(params, axes=remedies[0]) == shapes_of_bases(params)


def test_what_is_said_of_one_of_several_arrays_can_be_followed():
    params = {"block": {"kernel": jnp.ones([3, 4, 5])}, "head": {"kernel": jnp.ones([4, 5])}}
    (said,) = warnings_of(ro.riemannian_eigenbasis, "flax", params)
    (remedy,) = re.findall(r"axes=(\{.*\});", said)
    for preset in re.findall(r'"(flax|scanned|convolution)"', said):
        axes = eval(remedy.replace("flax", preset))
        assert not warnings_of(ro.riemannian_eigenbasis, axes, params)


def test_describe_calls_the_only_array_so():
    params = jnp.ones([3, 4, 5])
    tx = ro.riemannian_eigenbasis(0.003)
    with pytest.warns(UserWarning, match="in_eigenbasis reads the only leaf"):
        told = ro.describe(tx, params)
    (remark,), (line,) = told.axes, told.bases
    assert remark.startswith(
        "the only leaf (3, 4, 5): a stack of 3: inputs 4, outputs 5, by default: give axes="
    )
    assert line.startswith("the only leaf (3, 4, 5): inputs 4 turned")
    (remedy,) = REMEDY.findall(remark)
    (confirmed,) = ro.describe(ro.riemannian_eigenbasis(0.003, axes=eval(remedy, {"ro": ro})), params).axes
    assert confirmed == "the only leaf (3, 4, 5): a stack of 3: inputs 4, outputs 5"


def test_names_for_the_only_array_are_refused_with_a_remedy():
    params = jnp.ones([3, 4, 5])
    with pytest.raises(
        ValueError, match=r"^axes has the name 'block', .* have no names, for they are one"
    ) as caught:
        ro.riemannian_eigenbasis(0.003, axes={"block": "flax"}).init(params)
    remedies = re.findall(r'(ro\.MatrixAxes\(.*?\)\)|"\w+")', str(caught.value))
    assert len(remedies) == 2
    for axes in remedies:
        assert not warnings_of(ro.riemannian_eigenbasis, eval(axes, {"ro": ro}), params)
