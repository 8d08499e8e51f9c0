"""What E is on the units that would die: a table from the record of ``benchmarks.continual.dying``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.continual.dying import FILE
from benchmarks.shared.markdown import table, title

PATHS = ("along plain descent", "along the metric")
WORDS = {
    "dead": "dead",
    "dying": "alive, and dead at the end of the next task",
    "others": "alive at both ends",
}


def _mean(found: Mapping[str, Any], scale: float = 1.0) -> str:
    if found["mean"] is None:
        return "-"
    error = found["standard_error"]
    return f"{scale * found['mean']:.3g}" + ("" if error is None else f" ± {scale * error:.2g}")


def chapter(results: Path) -> str:
    """Return the chapter, empty without a record."""
    file = results / FILE
    if not file.exists():
        return ""
    record = json.loads(file.read_text())
    lines = [
        [
            WORDS[name],
            f"{100 * group['share']:.1f}",
            *(_mean(group[path]) for path in PATHS),
            _mean(group["dead under the metric"], 100),
        ]
        for name, group in record["groups"].items()
    ]
    headings = ["units of plain descent", "per cent of all", *(f"E {path}" for path in PATHS)]
    first, last = record["seeds"]
    return f"""\
### E on the units that would die

On {title(record["stream"])}, hidden units by what plain descent makes of them, at the end of a task: the
mean E of their incoming weights, of the same units under "metric + pull" from the same weights on the same
batches, and how many of them are dead there. Along plain descent E changes nothing: it is what the metric
would be. The pull and the rate are divided by E: where E is small, the step back to the initial weights is
large. Means and standard errors over {last - first} seeds; `{record["command"]}`.

{table([*headings, "per cent dead under the metric"], lines)}
"""
