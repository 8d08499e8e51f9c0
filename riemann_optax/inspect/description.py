"""What describe finds, and the table that it prints as."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from riemann_optax.eigenbasis.account import short
from riemann_optax.inspect._grouping import grouped


class LeafDescription(NamedTuple):
    """What :func:`describe` says of one leaf.

    Attributes:
      name: the path of the leaf.
      shape: its shape.
      phi: the declared name of its phi; empty where the leaf is Euclidean.
      metric_min: the smallest ``E``.
      metric_max: the largest ``E``.
      state_bytes: the optimiser state kept for this leaf, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    phi: str
    metric_min: float
    metric_max: float
    state_bytes: int


class Description(NamedTuple):
    """What :func:`describe` returns; ``print`` shows it as a table.

    Equal leaves of numbered layers share a line of the table: ``[0..5]`` stands for six of them.

    Attributes:
      leaves: one row per parameter.
      shared_state_bytes: state that belongs to no one leaf (counters, statistics), in bytes.
      gradients: which gradients ``E`` was evaluated at.
      axes: how arrays were read that are neither a plain matrix nor one vector, and which of them by default,
        because neither name nor shape tells.
      bases: which sides of each leaf an eigenbasis turns, which not and why, and what it costs; and how often
        a basis was due and the old one was kept, because none was found.
    """

    leaves: tuple[LeafDescription, ...]
    shared_state_bytes: int
    gradients: str
    axes: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the table."""
        header = ("leaf", "shape", "phi", "E", "effective rate 1/E", "state bytes")
        kinds = grouped([(leaf.name, _row(leaf)) for leaf in self.leaves])
        rows: list[tuple[str, ...]] = [header]
        for name, (*cells, size), count in kinds:
            rows.append((name, *cells, size if count == 1 else f"{count} x {size}"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        whole = sum(leaf.state_bytes for leaf in self.leaves) + self.shared_state_bytes
        state = f"state: {short(whole)}B in all, {short(self.shared_state_bytes)}B of it shared"
        lines.append(f"{state}; E at {self.gradients}")
        names = [leaf.name for leaf in self.leaves]
        lines += [f"read as: {line}" for line in _of_kinds(self.axes, names)]
        lines += [f"eigenbasis: {line}" for line in _of_kinds(self.bases, names)]
        return "\n".join(line.rstrip() for line in lines)


def _row(leaf: LeafDescription) -> tuple[str, ...]:
    def interval(low: float, high: float) -> str:
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"

    unknown = math.isnan(leaf.metric_min) and math.isnan(leaf.metric_max)
    return (
        str(leaf.shape),
        leaf.phi or "Euclidean",
        "-" if unknown else interval(leaf.metric_min, leaf.metric_max),
        "-" if unknown else interval(*(1 / E if E else math.inf for E in (leaf.metric_max, leaf.metric_min))),
        str(leaf.state_bytes),
    )


def _of_kinds(lines: Sequence[str], names: Sequence[str]) -> list[str]:
    """Join lines on leaves that say the same of numbered layers."""
    times: Counter[str] = Counter()  # of one leaf the same may be said twice, as of the sides of a window

    def split(line: str) -> tuple[str, tuple[str, ...]]:
        name = named(line, names)
        times[line] += 1
        return name, (line[len(name) :], str(times[line]))

    return [name + said for name, (said, _), _ in grouped([split(line) for line in lines])]


def named(line: str, names: Sequence[str]) -> str:
    """Return the name of the leaf that a line is on."""
    return max((name for name in names if line.startswith(name)), key=len, default="")
