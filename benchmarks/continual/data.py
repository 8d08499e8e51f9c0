"""Images for the streams: scikit-learn's digits, or what the trainer's examples can load."""

from pathlib import Path

import numpy as np

from benchmarks.permuted_digits.problem import Images, digits
from riemann_optax.examples import datasets

LIMIT = 10_000  # rows kept of a larger data set; every seed splits them anew


def load(name: str, folder: Path | None = None) -> Images:
    """Load images as rows in [0, 1]: ``"digits"`` or a name of ``riemann_optax.examples.hub.SOURCES``."""
    if name == "digits":
        return digits()
    dataset = datasets.load(name, data_dir=folder)
    pictures, labels = (dataset.parts["train"][part][:LIMIT] for part in ("images", "labels"))
    rows = pictures.reshape(len(pictures), -1).astype(np.float32) / dataset.scale
    return Images(rows, labels, dataset.num_classes)
