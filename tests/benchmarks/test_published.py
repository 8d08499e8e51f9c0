"""Published streams of images: what a task is, the measures by their definitions, a run in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.continual import __main__ as command
from benchmarks.continual import images, measures, permuted, published, splits, streams, summary
from benchmarks.continual.images import Images
from benchmarks.continual.job import Job
from benchmarks.continual.laboratory import Laboratory
from benchmarks.shared.records import Records

DIGITS = images.digits()
FEW = Images(DIGITS.inputs[:200], DIGITS.labels[:200], 10)


def of(task_of, number, seed=3, count=40, epochs=2):
    return task_of(count, epochs, 16)(FEW, jnp.asarray(seed), jnp.asarray(number))


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    activities = np.maximum(np.random.default_rng(0).normal(size=(50, 12)), 0)
    activities[:, :5] = 0
    singular = np.linalg.svd(activities, compute_uv=False)
    shares = singular[singular > 1e-12] / singular.sum()
    np.testing.assert_allclose(
        measures.effective_rank(jnp.asarray(activities, jnp.float32)),
        np.exp(-np.sum(shares * np.log(shares))),
        rtol=1e-4,
    )
    np.testing.assert_allclose(measures.effective_rank(3 * jnp.eye(6)[:, :4]), 4, rtol=1e-5)
    assert measures.effective_rank(jnp.zeros((6, 4))) == 0


def test_a_unit_is_dead_that_is_0_on_every_example():
    hidden = [jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 2.0]])]
    np.testing.assert_allclose(measures.dead_units(hidden), 50)


def test_forgetting_is_the_fall_from_the_best():
    accuracies = np.array([[9.0, 1.0, 1.0], [8.0, 7.0, 2.0], [5.0, 9.0, 6.0]])  # learned x tested
    # 9 to 5; the second task was best at its end, with 7, and has gained since.
    np.testing.assert_allclose(measures.forgetting(accuracies), ((9 - 5) + (7 - 9)) / 2)
    assert measures.forgetting(np.ones((4, 1, 1))).tolist() == [0] * 4


@pytest.mark.parametrize("kind", ["permuted", "label_permuted", "random_labels"])
def test_an_epoch_has_each_image_of_a_task_once(kind):
    first, second = (of(getattr(published, kind), number) for number in (0, 1))
    for task in (first, second):
        assert task.rows.shape == (4, 16)  # two epochs of 32 out of 40
        epochs = np.asarray(task.rows).reshape(2, 32)
        assert all(len(set(epoch)) == 32 for epoch in epochs)
        assert (epochs[0] != epochs[1]).any()
        assert sorted(np.asarray(task.pixels)) == list(range(64))
    same_pixels = kind != "permuted"
    assert (np.asarray(first.pixels) == np.asarray(second.pixels)).all() == same_pixels
    same_labels = kind == "permuted"
    assert (np.asarray(first.labels) == np.asarray(second.labels)).all() == same_labels


def test_labels_move_by_class_or_are_drawn_for_each_image():
    moved, drawn = of(published.label_permuted, 1), of(published.random_labels, 1)
    pairs = {(old, int(new)) for old, new in zip(FEW.labels, moved.labels, strict=True)}
    assert len(pairs) == 10
    pairs = {(old, int(new)) for old, new in zip(FEW.labels, drawn.labels, strict=True)}
    assert len(pairs) > 50


def test_random_labels_are_of_the_same_images_in_every_task():
    chosen = [set(np.asarray(of(published.random_labels, n, epochs=9).rows).reshape(-1)) for n in (0, 1)]
    assert len(chosen[0]) == 40  # one left out of an epoch is in another
    assert chosen[0] == chosen[1]
    assert chosen[0] != set(np.asarray(of(published.random_labels, 0, seed=4, epochs=9).rows).reshape(-1))


def test_descent_on_two_tasks_step_by_step():
    """SGD in float64 NumPy on the batches of the tasks: what is right before each step, and at the end."""
    hidden, rate, seed = (12, 9), 0.1, 5
    found = published.run(
        Job("SGD", [{"rate": 0.01}, {"rate": rate}], range(seed - 1, seed + 1), FEW),
        tasks=2,
        images=96,
        epochs=2,
        hidden=hidden,
        of_kind=published.permuted,
    )[1].by_seed
    network_key, _ = jax.random.split(jax.random.key(seed))
    layers = jax.tree.map(
        lambda x: np.asarray(x, np.float64), images.draw_network(network_key, (64, *hidden, 10))
    )
    losses, accuracies, ends, dead, ranks = [], [], [], [], []

    def forward(x):
        values = [x]
        for n, layer in enumerate(layers):
            x = x @ layer["kernel"] + layer["bias"]
            x = np.maximum(x, 0) if n < len(layers) - 1 else x
            values.append(x)
        return values

    for number in range(2):
        task = of(published.permuted, number, seed=seed, count=96)
        inputs = FEW.inputs.astype(np.float64)[:, np.asarray(task.pixels)]
        for rows in np.asarray(task.rows):
            values, labels = forward(inputs[rows]), FEW.labels[rows]
            exponentials = np.exp(values[-1] - values[-1].max(1, keepdims=True))
            slope = exponentials / exponentials.sum(1, keepdims=True)
            losses.append(-np.log(slope[np.arange(16), labels]).mean())
            accuracies.append((values[-1].argmax(1) == labels).mean())
            slope[np.arange(16), labels] -= 1
            slope /= 16
            for n in reversed(range(len(layers))):
                into = slope @ layers[n]["kernel"].T * (values[n] > 0)
                layers[n]["kernel"] -= rate * values[n].T @ slope
                layers[n]["bias"] -= rate * slope.sum(0)
                slope = into
        rows = np.asarray(task.rows).reshape(-1)
        _, first, second, logits = forward(inputs[rows])
        ends.append((logits.argmax(1) == FEW.labels[rows]).mean())
        dead.append(np.concatenate([(first == 0).all(0), (second == 0).all(0)]).mean())
        singular = [np.linalg.svd(h, compute_uv=False) for h in (first, second)]
        shares = [s[s > 1e-9] / s.sum() for s in singular]
        ranks.append(np.mean([np.exp(-np.sum(p * np.log(p))) for p in shares]))
    expected = {
        "loss": np.mean(losses),
        "accuracy": 100 * np.mean(accuracies),
        "accuracy at end of task": 100 * np.mean(ends),
        "accuracy, last tenth": 100 * np.mean(accuracies[12:]),
        "dead units": 100 * dead[-1],
        "effective rank": ranks[-1],
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][1], value, rtol=1e-3, err_msg=name)


def test_classes_come_two_by_two_and_every_task_has_its_own_test():
    data = splits.make_splits([0, 1], DIGITS)
    own = jax.tree.map(lambda leaf: leaf[1], data)
    assert sorted(np.asarray(own.classes).reshape(-1)) == list(range(10))
    for labels, pair in zip(own.labels, own.classes, strict=True):
        assert set(np.asarray(labels)) == set(np.asarray(pair))
    seen = {row.tobytes() for row in np.asarray(own.inputs).reshape(-1, 64)}
    assert not seen & {row.tobytes() for row in np.asarray(own.test_inputs)}
    params = images.draw_network(jax.random.key(0))
    guesses = np.asarray(images.logits(params, own.test_inputs)).argmax(1)
    labels = np.asarray(own.test_labels)
    expected = [(guesses == labels)[np.isin(labels, pair)].mean() for pair in np.asarray(own.classes)]
    np.testing.assert_allclose(splits.tested(params, own), expected, rtol=1e-6)


def test_one_head_forgets_classes_that_do_not_come_again():
    job = Job("SGD", [{"rate": 0.5}], range(2), DIGITS)
    found = splits.run(job, epochs=3, batch=32)[0]
    assert found.by_seed["last task"].min() > 90
    assert found.by_seed["forgetting"].min() > 80
    assert found.curve.shape == (5,)
    assert np.isfinite(permuted.run(job, tasks=2, epochs=1, batch=32)[0].by_seed["forgetting"]).all()


def test_the_length_is_the_users_and_results_of_another_are_not_mixed(tmp_path, capsys):
    stream = streams.adjusted(streams.STREAMS["online_permuted"], tasks=800, images=None, hidden=[2000] * 3)
    assert stream.size.length == streams.ONE_PASS | {"tasks": 800, "hidden": [2000] * 3}
    assert streams.adjusted(streams.SLOW, tasks=3) is streams.SLOW
    with pytest.raises(SystemExit):
        command.parse(["--tasks", "3", "--streams", "slowly_changing", "--out", str(tmp_path)])
    assert "--tasks, --images and --hidden are of online streams" in capsys.readouterr().err
    key = {"suite": "continual", "stream": "online_permuted", "data": "mnist", "phase": "fresh", "point": {}}
    entries = [
        {
            "key": key | {"method": streams.ONLINE.ours, "size": streams.ONE_PASS | {"tasks": tasks}},
            "result": {"accuracy, last tenth": [value]},
        }
        for tasks, value in ((100, 80.0), (800, 70.0))
    ]
    assert summary.rows(entries, "online_permuted", "mnist")[0].mean == 70
    (short,) = summary.rows(entries, "online_permuted", "mnist", streams.ONE_PASS)
    assert short.mean == 80


def test_tuning_sees_the_first_tasks_only_and_its_trials_are_counted(tmp_path):
    stream = streams.adjusted(streams.STREAMS["online_permuted"], tasks=3, images=64, hidden=[8])
    stream = stream._replace(tuning_tasks=2, rounds=1)
    records = Records(tmp_path / "continual.jsonl")
    laboratory = Laboratory("online_permuted", stream, "digits", DIGITS, records, lambda *_: None)
    laboratory.work(stream.ours)
    lengths = {entry["key"]["phase"]: entry["key"]["size"]["tasks"] for entry in records}
    assert lengths == {"tuning": 2, "fresh": 3}
    key = {"suite": "continual", "stream": "online_permuted", "data": "mnist", "method": stream.ours}
    entries = [
        {
            "key": key
            | {"phase": phase, "point": {"rate": rate}, "size": streams.ONE_PASS | {"tasks": tasks}},
            "result": {"accuracy, last tenth": [80.0]},
        }
        for phase, tasks, rate in [
            ("fresh", 100, 1.0),
            ("tuning", 20, 1.0),
            ("tuning", 20, 2.0),
            ("tuning", 9, 3.0),
        ]
    ]
    assert summary.rows(entries, "online_permuted", "mnist")[0].trials == 2


def test_a_quick_run_of_every_published_stream(tmp_path, capsys):
    names = ["online_permuted", "online_label_permuted", "random_labels", "class_incremental"]
    command.main(["--quick", "--out", str(tmp_path), "--streams", *names])
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def test_a_method_that_no_chosen_stream_has_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.parse(
            ["--streams", "noise_shift", "--methods", "SGD", "metric, bounded", "--out", str(tmp_path)]
        )
    assert "--methods: unknown metric, bounded" in capsys.readouterr().err
