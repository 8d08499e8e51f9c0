"""All streams side by side: a row per method, a column per stream."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.continual.streams import STREAMS
from benchmarks.continual.summary import Row, rows
from benchmarks.shared.markdown import number, table, title

Found = dict[tuple[str, str], list[Row]]  # by stream and data


def every_stream(entries: Sequence[Any]) -> Found:
    """Return the rows of every stream and data that have a run of ours."""
    data = dict.fromkeys(entry["key"]["data"] for entry in entries if "data" in entry["key"])
    every = {(stream, name): rows(entries, stream, name) for stream in STREAMS for name in data}
    return {key: found for key, found in every.items() if found}


def named(stream: str, data: str) -> str:
    """Return a stream in words, with what it learns if these are not the digits.

    Examples:
      >>> named("online_permuted", "mnist"), named("noise_shift", "digits")
      ('online permuted, mnist', 'noise shift')
    """
    return title(stream) + ("" if data == "digits" else f", {data}")


def leaders(stream: str, found: Sequence[Row]) -> set[str]:
    """Return the methods whose mean is within one standard error of the best one."""
    best = found[0]
    sign = -1 if STREAMS[stream].higher else 1
    behind = {row.method: sign * (row.mean - best.mean) for row in found}
    allowed = 0.0 if np.isnan(best.error) else best.error
    return {method for method, distance in behind.items() if distance <= allowed}


def _cell(row: Row, leads: bool) -> str:
    if not np.isfinite(row.mean):
        return "diverged"
    text = f"{row.mean:.4g}" + ("" if np.isnan(row.error) else f" ± {row.error:.2g}")
    return f"**{text}**" if leads else text


def ranks(found: Found) -> dict[str, list[int]]:
    """Return the rank of each method on the streams it takes part in; one that diverged has the last."""
    by_method: dict[str, list[int]] = {}
    for table_of in found.values():
        for place, row in enumerate(table_of, 1):
            rank = place if np.isfinite(row.mean) else len(table_of)
            by_method.setdefault(row.method, []).append(rank)
    return by_method


def readers_table(found: Found) -> str:
    """Lay out all methods: first those of the most streams, and of these the best in the mean rank."""
    places = ranks(found)
    of_stream = {key: {row.method: row for row in table_of} for key, table_of in found.items()}
    best = {key: leaders(key[0], table_of) for key, table_of in found.items()}
    lines = []
    for method in sorted(places, key=lambda name: (-len(places[name]), np.mean(places[name]))):
        cells = [
            _cell(of_stream[key][method], method in best[key]) if method in of_stream[key] else "-"
            for key in found
        ]
        lines.append([method, number(float(np.mean(places[method])), 1), str(len(places[method])), *cells])
    headings = [
        f"{named(*key)}: {STREAMS[key[0]].measure}, {'more' if STREAMS[key[0]].higher else 'less'} is better"
        for key in found
    ]
    return table(["method", "mean rank", "streams", *headings], lines)
