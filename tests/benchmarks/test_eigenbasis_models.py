"""The eigenbasis benchmark's Vision Transformer, its controls, and the memory that it measures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from benchmarks.eigenbasis import __main__ as command
from benchmarks.eigenbasis import controls, forms, problems, runs, sizes, tables
from benchmarks.shared import memory
from benchmarks.shared.experiment import Method
from benchmarks.step_cost import measure as step_cost
from benchmarks.step_cost import report as step_report


def test_an_image_is_a_function_of_its_index_and_the_parts_are_apart():
    problem = problems.load(image=8, patch=4, classes=4, width=16, depth=1)
    images, labels = problem.take("train", jnp.arange(8))
    np.testing.assert_array_equal(labels, np.arange(8) % 4)
    np.testing.assert_allclose(images[2], problem.take("train", jnp.array([2]))[0][0], atol=1e-5)
    held_out, _ = problem.take("validation", jnp.arange(8))
    distance = np.abs(np.asarray(images)[:, None] - np.asarray(held_out)).mean(axis=(2, 3, 4))
    assert distance.min() > 0.1
    assert problem.examples + len(problem.validation) < np.iinfo(np.int32).max


def test_a_class_is_four_waves():
    """Images of one class, shifted in every way, span a space of two numbers a wave, and noise."""
    problem = problems.load(image=16, patch=4, classes=4, width=16, depth=1)
    images, _ = problem.take("train", 4 * jnp.arange(400))
    values = np.linalg.svd(np.asarray(images).reshape(400, -1), compute_uv=False)
    assert values[7] > 1.5 * values[8]  # eight directions stand out of the noise
    assert values[8] < 1.5 * values[16]


def test_attention_sees_every_patch():
    """A block without positions treats all patches alike: it commutes with every order of them."""
    block = problems.VisionTransformer(12, 4, 3, width=16, depth=1, rngs=nnx.Rngs(0)).blocks[0]
    stream = jax.random.normal(jax.random.key(0), (2, 9, 16))
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(block(stream[:, order]), block(stream)[:, order], atol=1e-5)


def test_the_vision_transformer_cuts_images_into_patches():
    """With one patch changed, only the embedding of that patch changes."""
    network = problems.VisionTransformer(8, 4, 3, width=8, depth=1, rngs=nnx.Rngs(0))
    seen = []
    network.blocks = nnx.List([lambda stream: seen.append(stream) or stream])
    images = jnp.zeros([1, 8, 8, 3])
    network(images)
    network(images.at[0, 5, 2].set(1.0))  # row 5 is in the lower half, column 2 in the left one
    changed = np.any(np.asarray(seen[0] != seen[1]), axis=-1)[0]
    assert changed.tolist() == [False, False, True, False]


def test_the_toy_learns_what_it_has_not_seen():
    length = dict(sizes.VISION["quick"].size.length) | {"steps": 120, "batch": 16}
    run = runs.trainer(Method(optax.adam, "peer", {}), **length)(0.01, 0)
    assert run.curve[-1] < run.curve[0]
    assert run.validation < 0.8 * np.log(4)


def test_the_command_trains_a_vision_transformer_and_keeps_earlier_rows(tmp_path, capsys):
    arguments = ["--quick", "--model", "vit", "--size", "20m", "--out", str(tmp_path), "--only"]
    command.main([*arguments, forms.ADAMW])
    command.main([*arguments, forms.ONE_SIDED, "--minutes", "10"])
    record = json.loads((tmp_path / "eigenbasis_forms_vit_20m.json").read_text())
    assert [row["form"] for row in record["rows"]] == [forms.ADAMW, forms.ONE_SIDED]
    assert record["device"] == jax.devices()[0].device_kind
    assert "--model vit" in record["command"]
    assert all(row["memory"] > 0 and row["device_peak"] is None for row in record["rows"])
    shown = capsys.readouterr().out
    assert "MB" in shown
    with pytest.raises(SystemExit, match="2"):
        command.parse(["--model", "vit", "--text-file", "x", "--out", str(tmp_path)])
    assert "--text-file is not used by --model vit" in capsys.readouterr().err


def first_step(form, params, gradients):
    tx = optax.with_extra_args_support(form.make(0.1))
    updates, _ = tx.update(gradients, tx.init(params), params)
    return updates


@pytest.fixture
def matrices():
    """Weights of 0, so that nothing decays, and gradients of rank three."""
    left, right = (jax.random.normal(jax.random.key(k), (6, 3)) for k in (0, 1))
    gradients = {
        "kernel": left @ jnp.diag(jnp.array([9.0, 3.0, 1.0])) @ right.T,
        "bias": jnp.arange(1.0, 7.0),
    }
    return jax.tree.map(jnp.zeros_like, gradients), gradients


def cosine(one, other):
    return float(jnp.vdot(one, other) / jnp.linalg.norm(one) / jnp.linalg.norm(other))


def test_controls_without_a_direction_step_along_the_gradient(matrices):
    """At the first step Nesterov's mean is along the gradient; the metric turns it, they do not."""
    params, gradients = matrices
    for name in (
        "leaf-mean phi in the basis",
        "norm-matched base",
        "norm-matched base, by leaf",
        controls.BASE,
    ):
        updates = first_step(command.KNOWN[name], params, gradients)
        for leaf in gradients:
            assert cosine(updates[leaf], gradients[leaf]) == pytest.approx(-1.0, abs=2e-3), (name, leaf)
    ours = first_step(command.KNOWN[forms.ONE_SIDED], params, gradients)
    assert all(cosine(ours[leaf], gradients[leaf]) > -0.98 for leaf in gradients)


def test_the_norm_matched_base_steps_as_far_as_the_form(matrices):
    params, gradients = matrices
    ours = first_step(command.KNOWN[forms.ONE_SIDED], params, gradients)
    whole, by_leaf = (
        first_step(command.KNOWN[name], params, gradients)
        for name in ("norm-matched base", "norm-matched base, by leaf")
    )
    assert float(optax.tree.norm(whole)) == pytest.approx(float(optax.tree.norm(ours)), rel=1e-3)
    for leaf in gradients:
        lengths = [float(jnp.linalg.norm(updates[leaf])) for updates in (by_leaf, ours)]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-3)


def test_permuted_phi_has_the_same_values_in_other_places(matrices):
    """Read off a vector, which no basis turns: the ratios of gradient and step are E over the rate."""
    params, gradients = ({"bias": tree["bias"]} for tree in matrices)
    ours, permuted = (
        np.asarray(gradients["bias"] / first_step(command.KNOWN[name], params, gradients)["bias"])
        for name in (forms.ONE_SIDED, "permuted phi in the basis")
    )
    np.testing.assert_allclose(np.sort(permuted), np.sort(ours), rtol=1e-4)
    assert not np.allclose(permuted, ours, rtol=0.01)


def test_alpha_infinite_is_phi_alone(matrices):
    """The first step of a vector is then the sign of its gradient, as RMSprop's is."""
    params, gradients = ({"bias": tree["bias"]} for tree in matrices)
    step = np.asarray(first_step(command.KNOWN["twin: alpha infinite"], params, gradients)["bias"])
    np.testing.assert_allclose(step, step[0], rtol=1e-3)


def row(name, loss, **options):
    cost = forms.Cost(2.0, 1.0, 1.0, None, 1.0, **options)
    return forms.Row(name, 0.01, [runs.Run(loss, loss, [loss], 1.0)] * 2, cost)


def test_what_a_control_keeps_is_its_share_of_the_gain():
    rows = [
        row(controls.BASE, 3.0),
        row(forms.ONE_SIDED, 2.0),
        row("norm-matched base", 2.75),
        row("SOAP", 1.0),
    ]
    assert controls.kept(rows) == {"norm-matched base": 0.25}
    assert controls.table(controls.kept(rows)).row_count == 1
    assert controls.kept(rows[1:]) == {}
    assert np.isnan(controls.kept([row(controls.BASE, 2.0), rows[1], rows[2]])["norm-matched base"])


def test_every_control_trains_at_every_refresh_interval(matrices):
    """The cost of a control is measured with and without refreshes, as a form's is."""
    params, gradients = matrices
    for name, form in controls.CONTROLS.items():
        tx = form.make(0.1, **({form.every: 5} if form.every else {}))
        state = tx.init(params)
        for _ in range(6):
            updates, state = tx.update(gradients, state, params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates)), name


def test_faster_tables_move_eight_times_as_far_and_nothing_else_does():
    params = {"embed": {"embedding": jnp.ones((3, 2))}, "head": {"kernel": jnp.ones((2, 3))}}
    gradients = jax.tree.map(lambda leaf: jnp.cumsum(leaf, 0), params)
    for base in (forms.ADAMW, forms.ONE_SIDED):
        form, plain = tables.TABLES[f"{base}, tables 8 times the rate"], forms.FORMS[base].make(0.1)
        found, expected = (
            jax.jit(lambda tx=tx: tx.update(gradients, tx.init(params), params)[0])()
            for tx in (form.make(0.1), plain)
        )
        np.testing.assert_allclose(found["embed"]["embedding"], 8 * expected["embed"]["embedding"], rtol=1e-5)
        np.testing.assert_allclose(found["head"]["kernel"], expected["head"]["kernel"], rtol=1e-5)


def test_a_record_keeps_its_controls_and_may_be_older_than_the_memory(tmp_path):
    """An earlier control is not dropped; a record of other seeds is refused before any run."""
    size, path = sizes.VISION["quick"].size, tmp_path / "eigenbasis_forms_vit.json"
    content = forms.content(size, [row(controls.BASE, 3.0), row(forms.ADAMW, 2.0)])
    for entry in content["rows"]:
        del entry["memory"], entry["device_peak"]
    path.write_text(json.dumps(content))
    merged = forms.with_recorded([row(forms.ONE_SIDED, 1.0, memory=5)], path, size)
    assert [one.name for one in merged] == [forms.ADAMW, forms.ONE_SIDED, controls.BASE]
    assert [one.cost.memory for one in merged] == [None, 5, None]
    content["protocol"]["seeds"] = [10]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="is of another protocol"):
        command.main(["--quick", "--model", "vit", "--out", str(tmp_path), "--only", forms.ADAMW])


def test_memory_counts_what_is_donated_once():
    """A thousand numbers in and a thousand out; two thousand where the input may not be overwritten."""
    numbers = jnp.zeros(1000)
    plain, donated = (
        jax.jit(lambda x: 2 * x, donate_argnums=which).lower(numbers).compile() for which in ((), (0,))
    )
    assert memory.of_program(plain) == 8000
    assert memory.of_program(donated) == 4000


def test_records_older_than_the_measurement_are_shown_with_a_dash():
    old, new = row("old", 2.0), row("new", 1.0, memory=12_300_000)
    column = forms.table([old, new]).columns[5]
    assert column.header == "MB"
    assert list(column.cells) == ["12.3", "-"]
    costs = {
        step_cost.COPY: step_cost.Cost(1.0, 0.0, 1.0, 12.0, 0.0),
        "sgd": step_cost.Cost(1.0, 0.0, 1.0, 12.0, 0.0, 16.0),
    }
    table = step_report.cost_table("matrix", costs)
    peak = next(column for column in table.columns if column.header == "peak")
    assert list(peak.cells) == ["-", "16.0"]


def test_the_constants_of_the_controls_are_the_forms_own():
    """Given explicitly, they change nothing."""
    params = {"kernel": jnp.zeros([4, 3])}
    gradients = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
    phi = ro.phi.activity(decay=controls.B2, state_dtype="bfloat16")
    given = first_step(forms.ours(b1=controls.B1, phi=phi, gradient_share=controls.SHARE), params, gradients)
    default = first_step(command.KNOWN[forms.ONE_SIDED], params, gradients)
    np.testing.assert_array_equal(given["kernel"], default["kernel"])
