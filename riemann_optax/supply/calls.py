"""What one call of a layer shows: what each of its weights is given, and what its neurons send on."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax.supply import marks, taps
from riemann_optax.supply.recorder import Recorder, Weight

PARAMETERS_OF_ITS_OWN = "a layer whose class changes its parameters"
READS_OUT = "a table that reads out as well, by attend"
Statistics = Literal["refuse", "running"]


class Call(NamedTuple):
    """One call of a layer.

    Attributes:
      received: what the layer was given.
      sent: what it gave.
      weight: its kernel, table or scale, where it has one.
      bias: likewise.
      inputs: makes what the weight multiplies.
      input_axes: how many of its last axes are features.
      output_axes: likewise of ``sent``.
      normalises: whether it is a normalisation: a layer right before it then sends on what this one does.
      refused: why the inputs cannot be told; empty where they can.
    """

    received: Any
    sent: Any
    weight: Weight | None
    bias: Weight | None
    inputs: Callable[[], Any]
    input_axes: int = 1
    output_axes: int = 1
    normalises: bool = False
    refused: str = ""


def show(call: Call, recorder: Recorder) -> None:
    """Tell the recorder what the call shows."""
    weight, bias = call.weight, call.bias
    if weight is not None:
        recorder.makes(weight, call.sent, call.output_axes)
    if recorder.signal == "inputs":
        recorder.is_constant(bias)
        if call.refused:
            recorder.refuse(weight, call.refused)
        elif weight is not None:
            inputs = call.inputs()
            for leaf in weight.leaves:
                recorder.keep(leaf, inputs, call.input_axes, weight.value, call.sent, weight.leaves)
        return
    border(call.received, recorder)
    if call.normalises and id(call.received) in recorder.sent:
        _, before = recorder.sent[id(call.received)]
    else:
        before = []
        if call.normalises:  # a conversion may stand between it and the layer before
            recorder.normalises(call.received, call.sent)
    parts = [part for part in (weight, bias) if part is not None]
    own = [(leaf, part.value, part.leaves) for part in parts for leaf in part.leaves]
    for leaf, _, mark in before:  # a layer and the normalisation behind it are one layer of neurons
        recorder.marks[leaf].remove(mark)
    made = [
        (leaf, array, recorder.keep(leaf, call.sent, call.output_axes, array, call.sent, leaves))
        for leaf, array, leaves in [*((leaf, array, mark.leaves) for leaf, array, mark in before), *own]
    ]
    recorder.sent[id(call.sent)] = call.sent, made


def positional(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a method's call with the first in its place, if it was given by its name."""
    if arguments:
        return arguments, keywords
    _, *names = inspect.signature(function).parameters
    if not names or names[0] not in keywords:
        return arguments, keywords
    return (keywords[names[0]],), {name: value for name, value in keywords.items() if name != names[0]}


def border(value: Any, recorder: Recorder) -> None:
    """Mark what a layer is given: it is not part of the nonlinearity before."""
    if recorder.signal == "activities":
        marks.mark(marks.BORDER, value)


def one_hot(indices: Any, rows: int) -> jax.Array:
    """Return the inputs of a table whose rows are looked up; a negative index counts from the last."""
    indices = jnp.asarray(indices)
    return jax.nn.one_hot(jnp.where(indices < 0, indices + rows, indices), rows)


def features_last(value: Any, axis: int | Sequence[int]) -> tuple[Any, int]:
    """Return a value with its features along its last axes, in their order there, and how many these are."""
    ndim = jnp.ndim(value)
    axes = sorted({one % ndim for one in ((axis,) if isinstance(axis, int) else axis)})
    order = [one for one in range(ndim) if one not in axes] + axes
    # Not jnp.moveaxis, which would hide the transposition in a call.
    return value if order == list(range(ndim)) else jax.lax.transpose(value, order), len(axes)


def of_norm(call: Call, axis: int | Sequence[int], normalised: Callable[[], Any]) -> Call:
    """Return the call of a normalisation whose features lie along an axis, or several."""
    sent, axes = features_last(call.sent, axis)
    return call._replace(
        sent=sent,
        inputs=lambda: features_last(normalised(), axis)[0],
        input_axes=axes,
        output_axes=axes,
        normalises=True,
    )


def unit_kernel(shape: tuple[int, ...], outputs: int, dtype: Any) -> jax.Array:
    """Return the kernel that copies each of its inputs to an output of its own.

    Args:
      shape: of the kernel.
      outputs: the axis of its outputs.
      dtype: of the kernel.
    """
    fan_in = shape[:outputs] + shape[outputs + 1 :]
    size = int(np.prod(fan_in))
    unit = jnp.eye(size, dtype=dtype).reshape(size, *fan_in)
    return jnp.moveaxis(unit, 0, outputs)


_statistics: ContextVar[Statistics | None] = ContextVar("statistics", default=None)


@contextmanager
def single_examples(statistics: Statistics) -> Iterator[None]:
    """Say what a layer that mixes examples does inside of the ``with`` block, where there is one example."""
    token = _statistics.set(statistics)
    try:
        yield
    finally:
        _statistics.reset(token)


def takes_running_statistics(layer: str) -> bool:
    """Return whether a layer that takes statistics of the batch has to take its running ones instead.

    Raises:
      ValueError: where it may do neither.
    """
    statistics = _statistics.get()
    if statistics == "refuse":
        raise ValueError(
            f"the gradient of a single example does not exist in a network with {layer}, which mixes the "
            'examples of a batch: give value_and_grad statistics="running", which takes its running '
            "statistics for these gradients alone; or use a layer that normalises each example by itself "
            "(LayerNorm, GroupNorm), or a phi that reads no per-example gradients."
        )
    return statistics == "running"


def is_watched() -> bool:
    """Return whether anything is to be seen in the evaluation under way."""
    return taps.recording() is not None or taps.watching() or _statistics.get() is not None
