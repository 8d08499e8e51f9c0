import jax
import jax.numpy as jnp
import numpy as np
import pytest

from riemann_optax.examples import data, datasets
from riemann_optax.examples.errors import InputError


def test_digits_hold_out_the_last_360_rows_in_their_given_order():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    dataset = datasets.load("digits")
    sizes = {part: len(arrays["labels"]) for part, arrays in dataset.parts.items()}
    assert sizes == {"train": 1200, "validation": 237, "heldout": 360}
    joined = {
        name: np.concatenate([dataset.parts[part][name] for part in data.PARTS])
        for name in ("images", "labels")
    }
    np.testing.assert_array_equal(joined["images"].reshape(1797, 64), images)
    np.testing.assert_array_equal(joined["labels"], labels)


def test_pixels_are_scaled_to_the_unit_range():
    dataset = datasets.load("digits")
    images, labels = dataset.take(jax.device_put(dataset.parts["train"]), jnp.arange(1200))
    assert images.dtype == jnp.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    np.testing.assert_array_equal(labels, dataset.parts["train"]["labels"])


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own():
    epochs = [
        np.concatenate([data.batch_indices(12, 4, seed=7, step=3 * epoch + batch) for batch in range(3)])
        for epoch in range(3)
    ]
    for order in epochs:
        assert sorted(order) == list(range(12))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_batches_are_a_function_of_seed_and_step_alone():
    forwards = [data.batch_indices(100, 8, seed=3, step=step) for step in range(40)]
    backwards = [data.batch_indices(100, 8, seed=3, step=step) for step in reversed(range(40))]
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert not np.array_equal(forwards[0], data.batch_indices(100, 8, seed=4, step=0))


def test_text_windows_are_followed_by_the_bytes_to_predict(tmp_path):
    content = bytes(range(100)) * 10
    path = tmp_path / "corpus.bin"
    path.write_bytes(content)
    dataset = data.load_text(path, window=5)
    parts = [dataset.parts[part]["tokens"].tobytes() for part in data.PARTS]
    assert [len(part) for part in parts] == [800, 100, 100]
    assert b"".join(parts) == content
    inputs, targets = dataset.take(jax.device_put(dataset.parts["train"]), jnp.array([0, 7]))
    np.testing.assert_array_equal(inputs, [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    np.testing.assert_array_equal(targets, [[1, 2, 3, 4, 5], [8, 9, 10, 11, 12]])


def test_every_text_window_lies_within_its_part(tmp_path):
    path = tmp_path / "corpus.bin"
    path.write_bytes(bytes(250) * 4)
    dataset = data.load_text(path, window=7)
    assert dataset.num_train - 1 + 7 == len(dataset.parts["train"]["tokens"]) - 1
    for part in data.PARTS:
        starts = dataset.evaluation_indices(part)
        assert set(np.diff(starts)) == {7}
        assert starts[-1] + 7 < len(dataset.parts[part]["tokens"]) <= starts[-1] + 2 * 7


def test_the_bundled_text_needs_no_file():
    dataset = datasets.load("text")
    assert dataset.description["source"] == "pydoc_data.topics"
    assert dataset.num_train > 100_000


@pytest.mark.parametrize("size", [0, 1, 640])
def test_a_text_shorter_than_a_window_in_each_part_is_refused(tmp_path, size):
    path = tmp_path / "short.txt"
    path.write_bytes(b"x" * size)
    with pytest.raises(InputError, match=rf"too short: its {size} bytes .* at least 650 bytes$"):
        datasets.load("text", text_file=path)


def test_the_shortest_text_that_the_message_allows_is_accepted(tmp_path):
    path = tmp_path / "short.txt"
    path.write_bytes(b"x" * 650)
    dataset = datasets.load("text", text_file=path)
    assert all(len(dataset.evaluation_indices(part)) >= 1 for part in data.PARTS)


def test_a_text_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^--text-file .*missing\.txt cannot be read \(No such file"):
        datasets.load("text", text_file=tmp_path / "missing.txt")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        datasets.load("text", text_file=tmp_path)


def test_files_for_another_kind_of_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="--text-file is not used by --data digits"):
        datasets.load("digits", text_file=tmp_path / "text")
    with pytest.raises(InputError, match="--data-dir is not used by --data text"):
        datasets.load("text", data_dir=tmp_path)
