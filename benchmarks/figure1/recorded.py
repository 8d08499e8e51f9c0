"""The recorded best paths, run again from the record."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.figure1.methods import METHODS
from benchmarks.figure1.paths import follow
from benchmarks.figure1.surfaces import Surface


def recorded_paths(
    record: Mapping[str, Any], name: str, surface: Surface, keys: Iterable[tuple[str, str | None]]
) -> dict[tuple[str, str | None], np.ndarray]:
    """Return the best path ``f[steps + 1, 2]`` on a surface of each method and role that arrived there."""
    rows = {(row["method"], row["role"]): row for row in record["rows"] if row["surface"] == name}
    methods = {(method.name, method.role): method for method in METHODS}
    found = {}
    with jax.enable_x64(True):
        for key in keys:
            best, method = rows[key]["best"] if key in rows else None, methods[key]
            if best is not None:
                transformation = method.build(best["rate"], best.get(method.second), jax.random.key(0))
                found[key] = np.asarray(follow(transformation, surface, int(best["steps"]))[0])
    return found
