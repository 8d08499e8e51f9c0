"""At AdamW's rate: the runs are those of a plain loop, and the chapter is made of records alone."""

import jax
import numpy as np
import optax
import pytest

from benchmarks.drop_in import __main__ as command
from benchmarks.drop_in.runs import ADAMW, METHODS, OURS, RATES, Laboratory, Run
from benchmarks.drop_in.shapes import SHAPES, TUNING_SEED, task
from benchmarks.report import drop_in
from benchmarks.shared.records import Records
from riemann_optax.examples.schedule import warmup_cosine


def test_a_run_is_a_plain_loop(tmp_path):
    run = Laboratory(Records(tmp_path / "runs.jsonl")).run(command.TINY, ADAMW, 0.01, seed=3)
    one = task(command.TINY)
    tx = optax.adamw(warmup_cosine(0.01, one.steps))
    params = one.init(3)
    state = tx.init(params)
    every = one.steps // one.evaluations
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 3), (one.steps // every, every))
    for key in keys.reshape(-1):
        updates, state = tx.update(jax.grad(one.loss)(params, one.sample(key)), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(run.validation, one.followed(params), rtol=1e-4)
    assert run.weights == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert run.state == pytest.approx(2.0, abs=0.01)


def best_at(rate, depth):
    """A loss over rates with its least value at a rate."""
    return [Run(depth + abs(np.log2(r / rate)), 1.0, 10, 0.1) for r in RATES]


def test_the_chapter_is_made_of_records_and_refuses_to_run(tmp_path, monkeypatch):
    made = {ADAMW: best_at(0.002, 2.0), OURS: best_at(0.004, 1.5)}
    records = Records(tmp_path / "drop_in.jsonl")
    shape = SHAPES["width 64"]
    for name, runs in made.items():
        for rate, run in zip(RATES, runs, strict=True):
            key = {"shape": shape._asdict(), "optimizer": name, "rate": rate, "seed": TUNING_SEED}
            records.put(key, run._asdict())
    text = drop_in.chapter(records)
    row = next(line for line in text.splitlines() if line.startswith("| width 64"))
    # AdamW is best at .002 with 2.0; ours has 1.5 + 1 octave there, and 1.5 at its own best.
    assert row.split(" | ") == ["| width 64", "0.002", "2.000", "2.500", "0.004", "1.500", "3 of 6 |"]
    assert "width 512" not in text
    assert drop_in.chapter(Records(tmp_path / "none.jsonl")) == ""


def test_the_picture_shows_every_shape(tmp_path):
    found = {label: {ADAMW: best_at(0.002, 2.0), OURS: best_at(0.004, 1.5)} for label in SHAPES}
    command.draw(tmp_path / "drop_in.png", found)
    assert (tmp_path / "drop_in.png").stat().st_size > 20_000


def test_every_optimiser_takes_a_rate_alone():
    for method in METHODS.values():
        method.make(0.002)
