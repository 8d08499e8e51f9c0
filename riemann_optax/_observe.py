"""How metric_at and describe look into an update under way: the stages report, if somebody listens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
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
