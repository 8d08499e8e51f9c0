"""How metric_at and describe look into an update under way: the stages report, if somebody listens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax._declare import trace_state
from riemann_optax.covector import Covector

Path = tuple[Any, ...]


class Observer:
    """What the stages have reported.

    Attributes:
      metrics: the metric ``E`` by the path of its leaf; the product where stage 2 came several times.
      phis: the name of the phi by the path of its leaf.
      bases: a line for each leaf with a side that an eigenbasis could turn.
    """

    def __init__(self) -> None:
        self.metrics: dict[Path, jax.Array] = {}
        self.phis: dict[Path, str] = {}
        self.bases: list[str] = []
        self.trace_state = trace_state()

    def by_leaf(self, gradients: optax.Updates) -> tuple[dict[Path, jax.Array], dict[Path, str]]:
        """Return ``metrics`` and ``phis`` by the paths of the leaves of ``gradients``.

        Raises:
          ValueError: where the stages have seen other leaves, and more than the vector of ``optax.flatten``.
        """
        leaves = dict(jax.tree_util.tree_leaves_with_path(gradients))
        sizes = [np.size(leaf) for leaf in leaves.values()]
        if self.metrics.keys() == {()} and self.metrics[()].shape == (sum(sizes),):
            parts = jnp.split(self.metrics[()], np.cumsum(sizes)[:-1])
            split = zip(leaves.items(), parts, strict=True)
            metrics = {path: part.reshape(np.shape(leaf)) for (path, leaf), part in split}
            return metrics, dict.fromkeys(leaves, self.phis.get((), "phi"))
        for path in self.metrics:
            if path not in leaves:
                name = jax.tree_util.keystr(path) or "a single array"
                raise ValueError(
                    f"metric_at: the metric is one of {name}, which is no leaf of gradients: a wrapper in tx "
                    "gives the stages other leaves. Leave it out, or call metric_at on what is inside of it."
                )
        return self.metrics, self.phis


_listening: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def listen() -> Iterator[Observer]:
    """Collect what the stages report inside of the ``with`` block."""
    observer = Observer()
    token = _listening.set(observer)
    try:
        yield observer
    finally:
        _listening.reset(token)


def phi_used(names: list[str], updates: optax.Updates) -> None:
    """Report which phis stage 1 has evaluated, and on which leaves."""
    observer = _listening.get()
    if observer is not None:
        for path, _ in jax.tree_util.tree_leaves_with_path(updates):
            observer.phis[path] = ", ".join(names) or "undeclared"


def basis_used(account: Callable[[], list[str]]) -> None:
    """Report what an eigenbasis turns; the account is made only if somebody listens."""
    observer = _listening.get()
    if observer is not None:
        observer.bases += account()


def metric_used(updates: optax.Updates) -> None:
    """Report which metric stage 2 is about to use."""
    observer = _listening.get()
    if observer is None:
        return
    if observer.trace_state != trace_state():
        raise ValueError(
            "metric_at: tx applies its metric inside a branch or loop, which cannot be read under jit: "
            "call metric_at outside of jit, or on the chain inside the wrapper."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        if isinstance(leaf, Covector):
            metric = jnp.broadcast_to(leaf.metric, leaf.shape)
            before = observer.metrics.get(path)
            observer.metrics[path] = metric if before is None else before * metric
