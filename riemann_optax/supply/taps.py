"""What a loss function shows of its inside: the model's outputs, and what its layers receive and send on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from riemann_optax._declare import trace_state
from riemann_optax.supply import marks, program
from riemann_optax.supply.recorder import Recorder, Signal


class Outputs:
    """The outputs of a model in one evaluation of its loss.

    Args:
      given: what takes the place of the outputs, in a list of one; None leaves them as they are.
    """

    def __init__(self, given: list[Any] | None = None) -> None:
        self.given = given
        self.found: list[tuple[str, Any]] = []
        self.trace = trace_state()
        self.inside = False  # seen where values are of one example, or do not last

    def pass_on(self, source: str, value: Any) -> Any:
        """Keep outputs, and return what goes on in their place."""
        if trace_state() != self.trace:
            self.inside = True
            return value
        self.found.append((source, value))
        return value if self.given is None else self.given[0]

    def only(self) -> Any:
        """Return the outputs.

        Raises:
          ValueError: where there are none, or several.
        """
        marked = [value for source, value in self.found if source == "marked"] or [v for _, v in self.found]
        if len(marked) != 1:
            seen = "not seen" if not marked else f"seen {len(marked)} times"
            if self.inside and not marked:
                seen = "seen inside of a vmap, jit or loop only"
            raise ValueError(
                f"the outputs of the model were {seen} in the loss function: mark them in it, outputs = "
                "riemann_optax.supply.outputs(outputs), once and outside of vmap and jit; outputs of several "
                "calls together, as a tuple."
            )
        return marked[0]


_outputs: ContextVar[Outputs | None] = ContextVar("outputs", default=None)


@contextmanager
def watch_outputs(given: list[Any] | None = None) -> Iterator[Outputs]:
    """Keep the outputs of the model, or put others in their place, inside of the ``with`` block."""
    watcher = Outputs(given)
    token = _outputs.set(watcher)
    try:
        yield watcher
    finally:
        _outputs.reset(token)


def watching() -> bool:
    """Return whether somebody waits for the outputs."""
    return _outputs.get() is not None


def outputs_seen(value: Any) -> Any:
    """Pass on the result of the model's outermost module, which a library has called."""
    return _pass_on("seen", value)


def outputs(value: Any) -> Any:
    """Mark the outputs of a model inside of a loss function, and return them.

    Use it for the phis that differentiate the outputs and the loss apart (``gauss_newton_curvature``,
    ``memory_aware_synapses``). The result of one call of an NNX or Linen model is seen without the mark; a
    model of Haiku, of Equinox or of plain functions needs it. The mark also says where the model ends.
    Without it, a function of single outputs in the loss, such as their ``tanh``, counts as the nonlinearity
    of the last layer (``activities``); powers, absolute values and logarithms count as part of the loss.
    Outside of :func:`riemann_optax.value_and_grad` it does nothing.

    Args:
      value: the outputs, an array or a tree, with examples along the first axis; outside of any ``vmap``.

    Returns:
      The same value.

    Raises:
      ValueError: not here, but where the outputs are needed: for a loss that marks them several times, or
        inside of a ``vmap``, ``jit`` or loop only.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> def loss(w, batch):
      ...     return jnp.mean((ro.supply.outputs(batch["x"] * w) - batch["y"]) ** 2)
      >>> step = ro.value_and_grad(loss, needs=("outputs_fn", "outputs_loss_fn"))
      >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.zeros(2)}
      >>> value, gradient, extra = step(jnp.array(3.0), batch)
      >>> print(extra["outputs_fn"](jnp.array(5.0)), extra["outputs_loss_fn"](jnp.ones(2)))
      [ 5. 10.] 1.0
    """
    return _pass_on("marked", value)


def _pass_on(source: str, value: Any) -> Any:
    watcher = _outputs.get()
    if watcher is not None:
        return watcher.pass_on(source, value)
    recorder = _recorder.get()
    if recorder is not None:
        for leaf in jax.tree.leaves(value):
            marks.mark(marks.OUTPUTS if source == "marked" else marks.SEEN, leaf)
    return value


_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def recording() -> Recorder | None:
    """Return the recorder of the evaluation under way."""
    return _recorder.get()


def record(
    signal: Signal,
    params: Any,
    evaluate: Callable[[Any], Any],
    is_partitioned: Callable[[], bool] = lambda: False,
    examine: program.Examination | None = None,
) -> Any:
    """Return a tree like ``params`` with the signal of each leaf in one evaluation of the loss.

    ``examine`` is shown the program of this evaluation.
    """
    recorders: list[Recorder] = []

    def watched(params: Any) -> Any:
        recorder = Recorder(signal, params)
        recorders[:] = [recorder]
        token = _recorder.set(recorder)
        try:
            return evaluate(params)
        finally:
            _recorder.reset(token)

    found = program.marked_values(watched, params, examine=examine)
    return jax.tree.unflatten(jax.tree.structure(params), recorders[0].collect(found, is_partitioned))


def observe(parameter: Any, *, inputs: Any = None, activities: Any = None) -> None:
    """Tell what a layer of your own receives and what its neurons send on, where the loss uses the layer.

    Use it for the phis that read ``inputs`` (``idbd``, ``autostep``) or ``activities``
    (``sliding_threshold``). The usual layers of NNX, Linen, Haiku and Equinox are observed without it. It may
    stand inside of ``vmap``, ``jit``, ``remat`` and ``scan``; outside of
    :func:`riemann_optax.value_and_grad` it does nothing.

    Args:
      parameter: the weights, the very array (or NNX variable) that the loss function was given.
      inputs: what each of them multiplies, shaped like the weights without the axes of the fan-out, with any
        batch axes in front; the number 1 for a bias.
      activities: those of the neurons, shaped like the weights without the axes of the fan-in, likewise.

    Raises:
      ValueError: while a signal is recorded, where ``parameter`` is none of the arrays that the loss function
        was given.
      TypeError: where a signal is no array.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> def loss(params, batch):
      ...     def neuron(x):  # of one example
      ...         y = jnp.tanh(x @ params["w"])
      ...         ro.supply.observe(params["w"], inputs=x, activities=y)
      ...         return y
      ...     return jnp.mean((jax.vmap(neuron)(batch["x"]) - batch["y"]) ** 2)
      >>> step = ro.value_and_grad(loss, needs="inputs")
      >>> batch = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "y": jnp.zeros([2, 1])}
      >>> _, _, extra = step({"w": jnp.ones([2, 1])}, batch)
      >>> print(extra["inputs"]["w"])
      [[1. 2.]
       [3. 4.]]
    """
    for name, signal in (("inputs", inputs), ("activities", activities)):
        if not (signal is None or hasattr(signal, "dtype") or isinstance(signal, int | float | list | tuple)):
            raise TypeError(
                f"observe: {name} must be an array, or the number 1, got {signal!r}: give the values "
                "themselves, such as inputs=x."
            )
    recorder = _recorder.get()
    if recorder is None:
        return
    value = inputs if recorder.signal == "inputs" else activities
    index = recorder.index(parameter)
    if index is None and hasattr(parameter, "get_metadata"):
        index = parameter.get_metadata().get(METADATA)
    if index is None:
        raise ValueError(
            "observe: parameter is none of the arrays that the loss function was given: pass the very array, "
            "not one computed from it."
        )
    if value is not None:
        recorder.told.add(index)
        if recorder.signal == "inputs" and jnp.ndim(value) == 0:
            recorder.constant.add(index)
        else:
            weights = parameter[...] if hasattr(parameter, "get_metadata") else parameter
            axes = max(jnp.ndim(weights) - 1, 1) if recorder.signal == "inputs" else 1
            recorder.keep(index, value, axes, weights)


# By which a variable of Flax NNX is known again inside of its transformations.
METADATA = "riemann_optax_leaf"
