"""The hub's data sets, read from small parquet files in the hub's own layout."""

import io

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from riemann_optax.examples import datasets, hub
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train.__main__ import main

RANDOM = np.random.default_rng(0)


def encode(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_shard(path, pictures, labels, image_column="image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {image_column: [encode(picture) for picture in pictures], "label": list(labels)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_dataset(folder, shape, image_column="image", num_train=40, num_test=10):
    """Write two shards of training rows and one of test rows, and return the pictures and labels."""
    sizes = {"train": num_train, "test": num_test}
    written = {
        part: (RANDOM.integers(0, 256, (size, *shape), np.uint8), np.arange(size) % 10)
        for part, size in sizes.items()
    }
    pictures, labels = written["train"]
    half = num_train // 2
    write_shard(folder / "train-00000-of-00002.parquet", pictures[:half], labels[:half], image_column)
    write_shard(folder / "train-00001-of-00002.parquet", pictures[half:], labels[half:], image_column)
    write_shard(folder / "test-00000-of-00001.parquet", *written["test"], image_column)
    return written


@pytest.mark.parametrize(
    ("name", "shape", "column", "subfolder"),
    [("mnist", (28, 28), "image", "mnist"), ("cifar10", (32, 32, 3), "img", "plain_text")],
)
def test_parquet_files_are_read_to_the_last_pixel(tmp_path, name, shape, column, subfolder):
    written = write_dataset(tmp_path / subfolder, shape, column)
    dataset = datasets.load(name, data_dir=tmp_path)
    in_validation = np.arange(40) % 10 == 9
    pictures, labels = (values for values in written["train"])
    expected = {
        "train": (pictures[~in_validation], labels[~in_validation]),
        "validation": (pictures[in_validation], labels[in_validation]),
        "heldout": written["test"],
    }
    for part, (pictures, labels) in expected.items():
        np.testing.assert_array_equal(dataset.parts[part]["images"].reshape(pictures.shape), pictures)
        np.testing.assert_array_equal(dataset.parts[part]["labels"], labels)
    assert dataset.input_shape == (*shape, 1)[:3]
    assert dataset.num_classes == 10
    images, _ = dataset.take(jax.device_put(dataset.parts["train"]), np.arange(36))
    np.testing.assert_allclose(images, dataset.parts["train"]["images"] / np.float32(255), rtol=1e-6)


def test_training_runs_on_parquet_files(tmp_path):
    write_dataset(tmp_path / "data", (12, 12))
    arguments = ["--data", "fashion_mnist", "--data-dir", str(tmp_path / "data"), "--model", "mlp", "--quiet"]
    arguments += ["--steps", "2", "--batch-size", "4", "--baseline", "none", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "record.json").exists()


def test_out_of_reach_of_the_hub_the_message_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*arguments, **options):
        raise ConnectionError("Name or service not known\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for name, repository in hub.SOURCES.items():
        with pytest.raises(InputError) as caught:
            datasets.load(name)
        message = str(caught.value)
        assert message.startswith(f"--data {name} cannot be fetched from the hub ({repository})")
        assert "--data-dir FOLDER" in message
        assert "\n" not in message


def test_files_fetched_earlier_are_read_by_the_same_code(monkeypatch, tmp_path):
    import huggingface_hub

    write_dataset(tmp_path / "mnist", (6, 6))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *arguments, **options: str(tmp_path))
    dataset = datasets.load("mnist")
    assert dataset.num_train == 36
    assert dataset.description == {"source": "ylecun/mnist"}


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--data-dir .* has no train-\*\.parquet: give the folder"):
        datasets.load("mnist", data_dir=tmp_path)
    write_shard(tmp_path / "train-0.parquet", RANDOM.integers(0, 256, (4, 6, 6), np.uint8), range(4))
    with pytest.raises(InputError, match=r"has no test-\*\.parquet"):
        datasets.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "found", "expected"), [("cifar10", (6, 6), 1, 3), ("mnist", (6, 6, 3), 3, 1)]
)
def test_the_pictures_of_another_data_set_are_refused(tmp_path, name, shape, found, expected):
    write_dataset(tmp_path, shape)
    message = f"its pictures have {found} channels, and those of {name} have {expected}: give the folder of"
    with pytest.raises(InputError, match=message):
        datasets.load(name, data_dir=tmp_path)


def test_files_that_are_not_parquet_are_refused_in_one_line(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}-0.parquet").write_bytes(b"this is not parquet")
    with pytest.raises(InputError, match=r"train-0\.parquet cannot be read as images and labels") as caught:
        datasets.load("mnist", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_pictures_that_cannot_be_decoded_are_refused(tmp_path):
    for part in ("train", "test"):
        columns = {"image": [{"bytes": b"no picture", "path": None}], "label": [0]}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{part}-0.parquet")
    with pytest.raises(InputError, match="cannot be read as images and labels"):
        datasets.load("mnist", data_dir=tmp_path)


def test_other_columns_are_named(tmp_path):
    for part in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / f"{part}-0.parquet")
    with pytest.raises(InputError, match=r"has the columns text: give files with the columns image"):
        datasets.load("mnist", data_dir=tmp_path)


def test_too_few_rows_for_a_validation_part_are_refused(tmp_path):
    write_dataset(tmp_path, (6, 6), num_train=8)
    with pytest.raises(InputError, match="fewer than 10 training rows"):
        datasets.load("mnist", data_dir=tmp_path)
