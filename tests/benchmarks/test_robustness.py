"""Robustness: a run is a plain loop, a disturbance comes where it should, and rows are counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.robustness import __main__ as command
from benchmarks.robustness import runs, summary
from benchmarks.robustness.disturbances import CALM, PANELS
from benchmarks.shared.records import Records
from riemann_optax.examples.schedule import warmup_cosine

SHORT = CALM._replace(batch=4, steps=6, planned=6)


def by_hand(conditions, rate, seed):
    """Train with AdamW, one step after the other, and return the held-out loss."""
    learned, right, held_out, held_out_labels = runs.images()
    answers = right.copy()
    weights_key, batch_key, label_key, share_key = jax.random.split(jax.random.key(seed), 4)
    wrong = np.asarray(jax.random.uniform(share_key, answers.shape)) < conditions.wrong_labels
    answers[wrong] = np.asarray(jax.random.randint(label_key, answers.shape, 0, 10))[wrong]
    tx = optax.adamw(warmup_cosine(rate, conditions.planned), **conditions.options)
    params = runs.draw(weights_key, conditions.dtype)
    state = tx.init(params)
    for count in range(conditions.steps):
        key = jax.random.fold_in(batch_key, count)
        chosen = np.asarray(jax.random.randint(key, (conditions.batch,), 0, len(answers)))
        factor = conditions.shock if count == conditions.steps // 2 else 1.0
        gradients = jax.grad(runs.loss)(params, factor * learned[chosen], answers[chosen])
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return float(runs.loss(params, held_out, held_out_labels))


@pytest.mark.parametrize(
    "changed", [{}, {"wrong_labels": 0.4}, {"shock": 10.0}, {"steps": 9, "planned": 9}, {"b1": 0.5}], ids=str
)
def test_a_run_is_a_plain_loop(changed):
    conditions = SHORT._replace(**changed)
    found = runs.run(runs.ADAMW, conditions, [0.01, 0.02], [3, 4])
    np.testing.assert_allclose(found[1, 0], by_hand(conditions, 0.02, 3), rtol=1e-4)
    if changed:
        assert abs(found[1, 0] - by_hand(SHORT, 0.02, 3)) > 1e-3


@pytest.mark.parametrize("name", runs.METHODS)
def test_a_momentum_of_nine_tenths_is_no_disturbance(name):
    assert PANELS["b1"].levels["0.9"] == CALM
    params = [jnp.array([1.0, -2.0]), jnp.ones((2, 3))]
    updates = []
    for options in ({}, {"b1": 0.9}, {"b1": 0.8}):
        tx = optax.with_extra_args_support(runs.METHODS[name].make(0.01, **options))
        state = tx.init(params)
        for step in range(3):
            gradients = jax.tree.map(lambda leaf, step=step: jnp.cos(leaf + step), params)
            update, state = tx.update(gradients, state, params)
        updates.append(update)
    same = [jax.tree.map(lambda a, b: bool((a == b).all()), updates[0], other) for other in updates[1:]]
    assert [all(jax.tree.leaves(one)) for one in same] == [True, False]


def test_half_precision_is_that_of_the_weights():
    params = runs.draw(jax.random.key(0), "bfloat16")
    gradients = jax.grad(runs.loss)(params, jnp.ones((2, 64)), jnp.array([1, 2]))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, gradients))} == {jnp.dtype("bfloat16")}


class Given:
    """Losses of two rates undisturbed and under one disturbance."""

    def losses(self, name, conditions):
        calm = np.array([[1.0, 3.0], [3.0, 3.0], [4.0, 4.0]]), np.array([[2.0, 2.2], [2.4, 2.4], [9.0, 9.0]])
        shock = np.array([[5.0, 5.0], [2.0, 2.0], [3.0, 3.0]]), np.array([[6.0, 8.0], [2.0, 2.0], [2.2, 2.4]])
        return calm if conditions == CALM else shock


def test_the_rate_is_chosen_undisturbed_and_kept(monkeypatch):
    monkeypatch.setattr(summary, "EXPONENTS", (-3, -2, -1))
    row = summary.row(Given(), runs.ADAMW, CALM._replace(shock=10.0))
    assert (row.rate, row.loss, row.error, row.retuned, row.octaves) == (0.125, 7.0, 1.0, 2.0, 1)
    calm = summary.row(Given(), runs.ADAMW, CALM)
    assert (calm.loss, calm.retuned, calm.octaves) == (2.1, 2.1, 1)


def test_what_diverges_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "run", lambda name, conditions, rates, seeds: np.full((11, 3), np.nan))
    laboratory = runs.Laboratory(Records(tmp_path / "runs.jsonl"), runs.QUICK)
    _, cells = summary.table_rows(summary.rows(laboratory, ["alpha"]))
    assert [line[1] for line in cells] == list(PANELS["alpha"].levels)
    # AdamW has no alpha.
    assert cells[0][2] == "-"
    assert cells[0][-1].startswith("diverged (diverged; 0)")


def test_a_small_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "METHODS", {runs.ADAMW: runs.METHODS[runs.ADAMW]})
    for module in (summary, command):
        monkeypatch.setattr(module, "METHODS", runs.METHODS)
    arguments = ["--quick", "--out", str(tmp_path), "--panels", "shock"]
    command.main(arguments)
    written = (tmp_path / "robustness.quick.jsonl").read_text()
    assert written.count('"optimizer"') == len(PANELS["shock"].levels)
    command.main(arguments)
    assert (tmp_path / "robustness.quick.jsonl").read_text() == written
    assert "One bad batch" in capsys.readouterr().out
    assert (tmp_path / "robustness.quick.png").stat().st_size > 10_000
