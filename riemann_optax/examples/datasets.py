"""Every data set of the trainer by its name."""

from pathlib import Path

from riemann_optax.examples import hub
from riemann_optax.examples.data import Dataset, load_digits, load_text
from riemann_optax.examples.errors import InputError


def load(name: str, *, data_dir: Path | None = None, text_file: Path | None = None) -> Dataset:
    """Load a data set by name.

    Args:
      name: ``"digits"``, ``"text"`` or a key of :data:`.hub.SOURCES`.
      data_dir: folder with ``train-*.parquet`` and ``test-*.parquet``, for the data sets of the hub.
      text_file: a file to read instead of the bundled text.

    Returns:
      The data set.

    Raises:
      InputError: if the data cannot be had; the message says what to do.
    """
    if text_file is not None and name != "text":
        raise InputError(f"--text-file is not used by --data {name}: add --data text")
    if data_dir is not None and name in ("digits", "text"):
        raise InputError(f"--data-dir is not used by --data {name}: leave it out")
    if name == "digits":
        return load_digits()
    if name == "text":
        return load_text(text_file)
    return hub.load(name, data_dir)
