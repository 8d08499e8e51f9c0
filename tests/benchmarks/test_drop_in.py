"""At AdamW's rate: the runs are those of a plain loop, and the chapter is made of records alone."""

import jax
import numpy as np
import optax
import pytest

from benchmarks.drop_in import __main__ as command
from benchmarks.drop_in.report import relative_rows
from benchmarks.drop_in.runs import ADAMW, METHODS, OURS, RATES, RELATIVE, Laboratory, Run, rates_of
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

    @jax.jit
    def step(params, state, key):
        updates, state = tx.update(jax.grad(one.loss)(params, one.sample(key)), state, params)
        return optax.apply_updates(params, updates), state

    every = one.steps // one.evaluations
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 3), (one.steps // every, every))
    for key in keys.reshape(-1):
        params, state = step(params, state, key)
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


def test_the_relative_rows_hold_best_rates_their_spread_and_the_cost_of_one_rate():
    plain = {"small": best_at(0.008, 2.0), "large": best_at(0.002, 1.0)}
    relative = {"small": best_at(0.004, 2.5), "large": best_at(0.004, 1.5)}
    found = {label: {OURS: plain[label], RELATIVE: relative[label]} for label in plain}
    _, rows = relative_rows(found)
    assert rows[0] == ["small", "0.008", "2.000", "0.064", "2.500"]
    assert rows[1] == ["large", "0.002", "1.000", "0.064", "1.500"]
    # Two octaves apart: at the rate between them each is one octave, here one nat, above its best.
    assert rows[2][1::2] == ["2", "0"]
    assert rows[3][1:] == ["0.004", "1.000", "0.064", "0.000"]


def test_the_table_of_relative_steps_is_made_of_records(tmp_path):
    records = Records(tmp_path / "drop_in.jsonl")
    assert drop_in.relative_table(records) == ""
    for name in (OURS, RELATIVE):
        for rate, run in zip(rates_of(name), best_at(0.004, 2.0), strict=True):
            shape = SHAPES["width 64"]._asdict()
            records.put({"shape": shape, "optimizer": name, "rate": rate, "seed": TUNING_SEED}, run._asdict())
    lines = drop_in.relative_table(records).splitlines()
    assert [line for line in lines if "width" in line] == ["| width 64 | 0.004 | 2.000 | 0.064 | 2.000 |"]


def test_the_picture_shows_every_shape(tmp_path):
    found = {label: {ADAMW: best_at(0.002, 2.0), OURS: best_at(0.004, 1.5)} for label in SHAPES}
    command.draw(tmp_path / "drop_in.png", found)
    assert (tmp_path / "drop_in.png").stat().st_size > 20_000


def test_every_optimiser_takes_a_rate_alone():
    for method in METHODS.values():
        method.make(0.002)
