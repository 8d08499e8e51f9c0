"""Data for the trainer: scikit-learn's digits and byte-level text (see :mod:`.hub` for MNIST and CIFAR).

A data set has three fixed parts: *train*, *validation* (taken from the training part, used for curves and
for tuning) and *heldout* (scored once, at the end of a run). Everything is held in memory as small integers
and turned into a batch inside the compiled step by :meth:`Dataset.take`. The order of the examples is a
pure function of the seed and the step (:func:`batch_indices`), so that an interrupted run can go on with
exactly the batches it would have seen.
"""

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax.examples.errors import InputError

PARTS = ("train", "validation", "heldout")
DIGITS_HELDOUT = 360
DIGITS_VALIDATION = 237
WINDOW = 64

Part = dict[str, np.ndarray]


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts.

    Attributes:
      name: the name it was loaded by.
      kind: ``"images"`` or ``"text"``.
      parts: for each of train, validation and heldout, either ``images`` ``u8[rows, height, width,
        channels]`` and ``labels`` ``i32[rows]``, or ``tokens`` ``u8[length]``.
      input_shape: shape of one example, ``(height, width, channels)`` or ``(window,)``.
      num_classes: number of classes or of tokens.
      scale: the largest pixel value, by which images are divided.
      description: where the data came from, for the record of a run.
    """

    name: str
    kind: Literal["images", "text"]
    parts: dict[str, Part]
    input_shape: tuple[int, ...]
    num_classes: int
    scale: float = 1.0
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def num_train(self) -> int:
        """Number of training examples: images, or positions at which a window of text can start."""
        if self.kind == "images":
            return len(self.parts["train"]["labels"])
        return len(self.parts["train"]["tokens"]) - self.input_shape[0]

    def fingerprint(self) -> str:
        """Return the SHA-256 of all parts: of what is learned, wherever it was read from."""
        digest = hashlib.sha256()
        for part in PARTS:
            for name, rows in sorted(self.parts[part].items()):
                digest.update(f"{part} {name} {rows.dtype} {rows.shape}".encode())
                digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def evaluation_indices(self, part: str) -> np.ndarray:
        """Indices ``i32[examples]`` that cover a part once: all images, or windows that do not overlap."""
        if self.kind == "images":
            return np.arange(len(self.parts[part]["labels"]), dtype=np.int32)
        window = self.input_shape[0]
        return np.arange(0, len(self.parts[part]["tokens"]) - window, window, dtype=np.int32)

    def gather(self, part: dict[str, Any], indices: Any) -> dict[str, Any]:
        """Return the rows of a part that make up a batch, as they are stored.

        Args:
          part: the arrays of one part, on the device inside the compiled step, or of NumPy.
          indices: ``i32[..., batch]``, likewise.

        Returns:
          By the names in ``part``: ``images`` and ``labels``, or ``tokens`` ``u8[..., batch, window + 1]``.
        """
        if self.kind == "images":
            return {name: rows[indices] for name, rows in part.items()}
        offsets = np.arange(self.input_shape[0] + 1, dtype=indices.dtype)
        return {"tokens": part["tokens"][indices[..., None] + offsets]}

    def decode(self, rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Turn gathered rows into a batch; runs inside the compiled step.

        Returns:
          Images ``f32[batch, height, width, channels]`` in 0..1 and labels ``i32[batch]``, or tokens
          ``i32[batch, window]`` and the tokens that follow each of them, of the same shape.
        """
        if self.kind == "images":
            return rows["images"].astype(jnp.float32) / self.scale, rows["labels"]
        tokens = rows["tokens"].astype(jnp.int32)
        return tokens[:, :-1], tokens[:, 1:]

    def take(self, part: dict[str, jax.Array], indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gather and decode a batch ``i32[batch]`` of a part on the device, inside the compiled step."""
        return self.decode(self.gather(part, indices))


@functools.lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples).astype(np.int32)


def batch_indices(num_examples: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Indices of the batch of one step: a pure function of the seed and the step.

    Each epoch is a fresh permutation; the examples left over after the last full batch of an epoch wait for
    the next one.

    Args:
      num_examples: size of the training part.
      batch_size: examples in a batch, at most ``num_examples``.
      seed: the seed of the order.
      step: the step, counted from 0.

    Returns:
      Indices ``i32[batch_size]``.

    Examples:
      >>> first_epoch = [batch_indices(6, 3, seed=0, step=step) for step in range(2)]
      >>> sorted(int(index) for batch in first_epoch for index in batch)
      [0, 1, 2, 3, 4, 5]
    """
    epoch, position = divmod(step, num_examples // batch_size)
    return _epoch_order(num_examples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


def load_digits() -> Dataset:
    """Load scikit-learn's 1797 bundled 8x8 digits, split by their given order: 1200, 237 and 360 rows.

    The rows are ordered by writer, so the later parts hold hands that the training part does not: a harder
    and more honest test than a shuffled split.
    """
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    labels = labels.astype(np.int32)
    heldout = len(labels) - DIGITS_HELDOUT
    train = heldout - DIGITS_VALIDATION
    rows = {"train": slice(0, train), "validation": slice(train, heldout), "heldout": slice(heldout, None)}
    parts = {part: {"images": images[rows[part]], "labels": labels[rows[part]]} for part in PARTS}
    return Dataset("digits", "images", parts, (8, 8, 1), 10, 16.0, {"source": "sklearn.datasets.load_digits"})


def load_text(path: Path | None = None, window: int = WINDOW) -> Dataset:
    """Load bytes: the first 80% train, then 10% for validation, then 10% held out.

    Args:
      path: a file of any kind; by default the help topics that come with Python
        (``pydoc_data.topics``; they differ a little between Python versions).
      window: bytes of context, at least 1.

    Returns:
      The data set; its description holds the SHA-256 of the bytes.

    Raises:
      InputError: if the file cannot be read, or if a part of it is shorter than one window and the byte
        that follows it.

    Examples:
      >>> dataset = load_text()
      >>> dataset.kind, dataset.num_classes, dataset.input_shape
      ('text', 256, (64,))
    """
    if path is None:
        from pydoc_data.topics import topics

        source, content = "pydoc_data.topics", "\n".join(topics.values()).encode()
    else:
        source = str(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--text-file {path} cannot be read ({reason}): give a readable file") from error
    tokens = np.frombuffer(content, np.uint8)
    first, second = len(tokens) * 8 // 10, len(tokens) * 9 // 10
    pieces = dict(zip(PARTS, np.split(tokens, [first, second]), strict=True))
    shortest = min(len(piece) for piece in pieces.values())
    if shortest <= window:
        raise InputError(
            f"--text-file {source} is too short: its {len(tokens)} bytes leave {shortest} for a part, and "
            f"one window needs {window + 1}: give a text of at least {10 * (window + 1)} bytes"
        )
    description = {"source": source, "bytes": len(tokens), "sha256": hashlib.sha256(content).hexdigest()}
    parts = {part: {"tokens": piece} for part, piece in pieces.items()}
    return Dataset("text", "text", parts, (window,), 256, description=description)
