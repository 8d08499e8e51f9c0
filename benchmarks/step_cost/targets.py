"""What an update of ours may cost, beside which peer, and the least it could move."""

from typing import NamedTuple

from benchmarks.step_cost.measure import Cost


class Target(NamedTuple):
    """A bound on one quantity of one optimiser, relative to another's where that is named.

    Attributes:
      problem: A name of ``problems.PROBLEMS``.
      optimizer: A name of ``methods.ALL``.
      quantity: A field of ``Cost``.
      limit: at most this, or this many times the reference's.
      reference: A name of ``methods.ALL``, or None.
    """

    problem: str
    optimizer: str
    quantity: str
    limit: float
    reference: str | None = None

    def measured(self, costs: dict[str, dict[str, Cost]]) -> float | None:
        """Return the value or ratio, None where it was not measured."""
        row = costs.get(self.problem, {})
        if self.optimizer not in row or (self.reference is not None and self.reference not in row):
            return None
        value = float(getattr(row[self.optimizer], self.quantity))
        return value if self.reference is None else value / float(getattr(row[self.reference], self.quantity))

    @property
    def bound(self) -> str:
        """The limit in words."""
        return f"{self.limit:.2f}" + ("" if self.reference is None else f" x {self.reference}")


TARGETS = [
    Target("matrix", "stateless metric", "seconds", 1.05, "sgd"),
    Target("matrix", "averaged phi", "seconds", 0.85, "adam"),
    Target("matrix", "averaged phi, momentum", "seconds", 1.0, "adam"),
    Target("matrix", "factored phi", "seconds", 2.3, "sgd"),
    Target("matrix", "factored phi", "seconds", 0.85, "adam"),
    Target("matrix", "factored phi", "seconds", 1 / 3, "adafactor"),
    Target("matrix", "stateless metric", "state_bytes_per_parameter", 0.001),
    Target("matrix", "averaged phi", "state_bytes_per_parameter", 4.001),
    Target("matrix", "averaged phi, bf16 state", "state_bytes_per_parameter", 2.001),
    Target("matrix", "factored phi", "state_bytes_per_parameter", 0.02),
    Target("transformer", "stateless metric", "seconds", 1.05, "sgd"),
    Target("transformer", "averaged phi", "seconds", 0.85, "adam"),
    Target("transformer", "averaged phi, momentum", "seconds", 1.0, "adam"),
    Target("transformer", "factored phi", "seconds", 2.3, "sgd"),
    Target("transformer", "factored phi", "seconds", 0.85, "adam"),
    Target("transformer", "factored phi", "seconds", 1 / 3, "adafactor"),
    Target("small_leaves", "averaged phi", "seconds", 1.0, "adam"),
    Target("small_leaves", "averaged phi, momentum", "seconds", 1.0, "adam"),
    Target("small_leaves", "averaged phi", "compile_seconds", 1.0, "adam"),
    Target("small_leaves", "averaged phi, momentum", "compile_seconds", 1.0, "adam"),
]

# Bytes per parameter that must be moved: gradient and weight read, weight written, each value of state read
# and written, and for factored phi the gradient once more, because its sums must be complete first.
FLOORS = {
    "sgd": 12,
    "momentum": 20,
    "adam": 28,
    "adamw": 28,
    "stateless metric": 12,
    "averaged phi": 20,
    "averaged phi, bf16 state": 16,
    "averaged phi, momentum": 28,
    "factored phi": 16,
    "factored phi, momentum": 24,
}
