"""MNIST, Fashion-MNIST, EMNIST and CIFAR-10, read by the Hugging Face ``datasets`` library.

The parquet files come from a folder the user names or from the hub (where a copy fetched earlier is used
when the hub is out of reach); either way they are read by the same code. Needs the extra ``data``.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from riemann_optax.examples.data import Dataset, Part
from riemann_optax.examples.errors import InputError

SOURCES = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "emnist": "tanganke/emnist_letters",
    "cifar10": "uoft-cs/cifar10",
}

# Seconds until the hub counts as out of reach.
TIMEOUT = 10.0

# Channels of a picture; the others are grey.
CHANNELS = {"cifar10": 3}

# Every so many rows of the published training part become the validation part.
VALIDATION_STRIDE = 10

_FILES = {"train": "train-*.parquet", "test": "test-*.parquet"}


def _download(name: str) -> Path:
    """Return the folder of the hub's files, from the local cache if the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{pattern}" for pattern in _FILES.values()]
    try:
        folder = snapshot_download(
            SOURCES[name], repo_type="dataset", allow_patterns=patterns, etag_timeout=TIMEOUT
        )
    except Exception as error:
        # The hub's client raises errors of several libraries (HTTP, operating system, its own).
        raise InputError(
            f"--data {name} cannot be fetched from the hub ({SOURCES[name]}): connect to the network, or put "
            "its train-*.parquet and test-*.parquet in a folder and give --data-dir FOLDER"
        ) from error
    return Path(folder)


def _read(files: list[Path]) -> Part:
    """Read parquet files whose rows hold an encoded image and an integer label."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # The library keeps an Arrow copy; the arrays below are all that is needed of it.
        with tempfile.TemporaryDirectory() as cache:
            table: Any = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=cache)
            image = next((column for column in ("image", "img") if column in table.column_names), None)
            if image is None or "label" not in table.column_names:
                raise InputError(
                    f"--data-dir: {files[0]} has the columns {', '.join(table.column_names)}: give files "
                    "with the columns image (or img) and label"
                )
            table = table.cast_column(image, datasets.Image())
            images = np.stack([np.asarray(picture, np.uint8) for picture in table[image]])
            labels = np.asarray(table["label"][:], np.int32)
    except InputError:
        raise
    except Exception as error:
        # Parquet, Arrow and image decoding errors have no common base.
        summary = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--data-dir: {files[0]} cannot be read as images and labels ({summary})") from error
    finally:
        if not shown:
            datasets.enable_progress_bars()
    return {"images": images.reshape(*images.shape[:3], -1), "labels": labels}


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load one of the hub's image data sets; the published test part is held out.

    Args:
      name: a key of :data:`SOURCES`.
      data_dir: a folder that holds ``train-*.parquet`` and ``test-*.parquet`` (at any depth), in which
        each row has ``image`` or ``img`` (a struct with the ``bytes`` of an encoded picture) and
        ``label``; by default they are fetched from the hub.

    Returns:
      The data set; every tenth row of the training part is the validation part.

    Raises:
      InputError: if the extra ``data`` is not installed, the files are missing, unreadable, or of
        another number of channels, or the hub is out of reach.
    """
    if name not in SOURCES:
        raise InputError(f"--data {name} is not known: use digits, text, {', '.join(SOURCES)}")
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise InputError(f"--data {name} needs the extra: pip install 'riemann-optax[data]'") from error
    folder = _download(name) if data_dir is None else data_dir
    files = {part: sorted(folder.rglob(pattern)) for part, pattern in _FILES.items()}
    for part, found in files.items():
        if not found:
            raise InputError(
                f"--data-dir {folder} has no {_FILES[part]}: give the folder of the hub's parquet files "
                f"({SOURCES[name]})"
            )
    published = {part: _read(found) for part, found in files.items()}
    found, expected = published["train"]["images"].shape[-1], CHANNELS.get(name, 1)
    if found != expected:
        raise InputError(
            f"--data-dir {folder}: its pictures have {found} channels, and those of {name} have {expected}: "
            f"give the folder of {SOURCES[name]}"
        )
    rows = np.arange(len(published["train"]["labels"]))
    in_validation = rows % VALIDATION_STRIDE == VALIDATION_STRIDE - 1
    parts = {
        "train": {key: value[~in_validation] for key, value in published["train"].items()},
        "validation": {key: value[in_validation] for key, value in published["train"].items()},
        "heldout": published["test"],
    }
    if not in_validation.any():
        raise InputError(f"--data-dir {folder}: fewer than {VALIDATION_STRIDE} training rows")
    num_classes = 1 + int(max(part["labels"].max() for part in published.values()))
    source = SOURCES[name] if data_dir is None else str(data_dir)
    shape = parts["train"]["images"].shape[1:]
    return Dataset(name, "images", parts, shape, num_classes, 255.0, {"source": source})
