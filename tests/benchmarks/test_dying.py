"""E on the units that would die: the paths step by step in NumPy, the groups by hand, the table."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.continual import dying, images, online
from benchmarks.continual.images import Images
from benchmarks.report import dying as chapter

DIGITS = images.digits()
FEW = Images(DIGITS.inputs[:100], DIGITS.labels[:100], 10)
SIZE = {"steps": 4, "batch": 8, "noisy": 0, "variance": 0.0}


def test_e_and_dead_units_along_plain_descent_step_by_step():
    seed, rate, draw = 3, 2.0, online.drawing(**SIZE)  # a rate that kills
    dead, metric = dying.follow("SGD", {"rate": rate}, range(2, 4), FEW, draw, 2)
    params, _ = online.begin(jnp.asarray(seed), (64, *online.HIDDEN, 10))
    squares, count, died = [np.zeros(layer["kernel"].shape) for layer in params], 0, 0
    for number in range(2):
        task = draw(FEW, jnp.asarray(seed), jnp.asarray(number))
        batches = [(FEW.inputs[rows], np.asarray(task.labels)[rows]) for rows in np.asarray(task.rows)]
        for inputs, labels in batches:
            gradients = jax.grad(lambda p, x, y: online.loss(p, x, y)[0])(params, inputs, labels)
            count += 1
            for square, layer in zip(squares, gradients, strict=True):
                square *= 0.985
                square += 0.015 * np.asarray(layer["kernel"], np.float64) ** 2
            params = jax.tree.map(lambda w, g: w - rate * g, params, gradients)
        e = [1 + 1000 * np.sqrt(square / (1 - 0.985**count)).mean(0) for square in squares[:-1]]
        np.testing.assert_allclose(metric[1, number], np.concatenate(e), rtol=1e-3)
        values, gone = np.concatenate([inputs for inputs, _ in batches]), []
        for layer in params[:-1]:
            values = np.maximum(values @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
            gone.append((values == 0).all(0))
        np.testing.assert_array_equal(dead[1, number], np.concatenate(gone))
        died += np.concatenate(gone).sum()
    assert 0 < died < 2 * 64


def test_groups_and_their_means_by_hand():
    dead = np.array([[[True, False, False], [True, True, False]], [[False] * 3, [False] * 3]])
    plain = np.array([[[1.0, 4.0, 9.0], [0.0, 0.0, 0.0]], [[5.0, 6.0, 10.0], [0.0, 0.0, 0.0]]])
    found = dying.compare(dead, plain, ~dead, 2 * plain)
    assert [found[name]["share"] for name in dying.GROUPS] == [1 / 6, 1 / 6, 4 / 6]
    means = {name: group["along plain descent"]["mean"] for name, group in found.items()}
    assert means == {"dead": 1.0, "dying": 4.0, "others": 8.0}  # 9 and (5 + 6 + 10) / 3
    assert found["others"]["along plain descent"]["standard_error"] == 1.0
    assert found["others"]["along the metric"]["mean"] == 16.0
    assert found["dying"]["dead under the metric"]["mean"] == 1.0
    assert found["dead"]["along plain descent"]["seeds"] == 1


def test_a_quick_run_has_a_table(tmp_path, capsys):
    assert chapter.chapter(tmp_path) == ""
    dying.main(["--quick", "--out", str(tmp_path)])
    capsys.readouterr()
    record = json.loads((tmp_path / dying.FILE).read_text())
    assert tuple(record["groups"]) == dying.GROUPS
    text = chapter.chapter(tmp_path)
    assert "| alive at both ends |" in text
    assert "`python -m benchmarks.continual.dying --quick`" in text
