"""Task boundaries: what a state does where one task ends and the next begins."""

import math
import sys
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree

State = TypeVar("State", bound="ConsolidatingState")


class ConsolidatingState(Protocol):
    """A state that has something to do at a task boundary; :func:`consolidate` finds it by its method.

    Examples:
      >>> from typing import Any, NamedTuple
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> class Start(NamedTuple):  # the weights at which the task began
      ...     weights: Any
      ...     def consolidated(self, params, task_importance=None):
      ...         return Start(params)
      >>> print(ro.consolidate((Start(jnp.zeros(2)),), jnp.ones(2))[0].weights)
      [1. 1.]
    """

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after the task that ended with ``params``."""
        ...


def consolidate(
    opt_state: optax.OptState, params: optax.Params, task_importance: optax.Params | None = None
) -> optax.OptState:
    """Tell every consolidating state inside of ``opt_state`` that a task has ended.

    A pure function of a state, for loops whose ``update`` takes no extra arguments, such as Flax's
    ``TrainState``: ``train_state.replace(opt_state=ro.consolidate(train_state.opt_state,
    train_state.params))``. Of an ``nnx.Optimizer`` it changes the state in place, as everything in NNX does:
    ``ro.consolidate(optimizer, model)``, between epochs or inside of ``nnx.jit``. Where the loop passes extra
    arguments on, ``task_boundary=True`` at the first update of the new task gives the same states.
    (``optax.MultiSteps`` passes on those of its last mini-step only: use this function there.)

    States inside of :func:`riemann_optax.in_eigenbasis` consolidate at the beginning of their next update,
    with the parameters given there. Each call is one boundary; between two there must be an update. A
    hyper-parameter of ``optax.inject_hyperparams``, such as ``memory``, is read by ``update``, not here: to
    change it for a boundary, give ``task_boundary=True`` to ``update``. Elementwise, so no collective.

    Args:
      opt_state: the state of any transformation with a consolidating phi or anchor anywhere in it, or an
        ``nnx.Optimizer``.
      params: the parameters at the end of the task, as the next ``update`` will see them, or the model of
        NNX or Equinox that has them; with an ``nnx.Optimizer`` the model.
      task_importance: the importance of each weight for the task that ended, in the structure of ``params``,
        for those phis that can be given one (such as :func:`riemann_optax.phi.online_ewc`).

    Returns:
      The new state, of the same structure, shapes and dtypes; of an ``nnx.Optimizer`` its ``opt_state``.

    Raises:
      ValueError: where there is no consolidating state, or one that restarts in an update; where a state
        still waits for the update after the last boundary; where the model has none of the variables that an
        ``nnx.Optimizer`` trains; where ``task_importance`` is given and nothing takes it, or is missing where
        it is needed; where ``params`` have other leaves or shapes than the state.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.online_ewc(), alpha=2.0),
      ...     ro.scale_by_inverse_metric(),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params, gradients = jnp.zeros(2), jnp.array([1.0, 3.0])
      >>> _, state = tx.update(gradients, tx.init(params), params)
      >>> print(ro.metric_at(tx, gradients, state, params))  # no task has ended
      [1. 1.]
      >>> print(ro.metric_at(tx, gradients, ro.consolidate(state, params), params))  # 1 + 2 * g**2
      [ 3. 19.]
    """
    if is_nnx_optimizer(opt_state):
        return _consolidate_in_place(opt_state, params, task_importance)
    boxed = opt_state
    opt_state, params, task_importance = _tree.bare((opt_state, parameters_of(params), task_importance))
    if restarts(opt_state):
        raise ValueError(
            "consolidate: restart_at_boundary restarts in an update, and this is none: give update the extra "
            "argument task_boundary=True at the first step of the new task instead."
        )
    found = consolidating_states(opt_state)
    if not found:
        raise ValueError(
            "consolidate: opt_state holds no state that a task boundary changes: put a consolidating phi "
            "(such as riemann_optax.phi.online_ewc()) or an anchor at the last task boundary in the chain."
        )
    if task_importance is not None and not any(getattr(node, "takes_importance", False) for node in found):
        raise ValueError(
            "consolidate: no state in opt_state takes a task_importance: leave it out, or use a phi that "
            "does, such as riemann_optax.phi.online_ewc()."
        )
    if _are_flattened(found, params):
        raise ValueError(
            "consolidate: the states hold all parameters as one vector: inside of optax.flatten give update "
            "the extra argument task_boundary=True at the first step of the new task instead; without it "
            "pass the parameters that are trained with this state."
        )
    if any(map(_is_pending, found)):
        raise ValueError(
            "consolidate: there was no update since the last boundary, and a state weighs the task that has "
            "ended in the next update: call update between two boundaries, if need be with gradients of 0."
        )
    for node in found:
        _check_params(node, params)
    return _tree.like(consolidate_within(opt_state, params, task_importance), boxed)


def _check_params(state: Any, params: optax.Params) -> None:
    """Raise ``ValueError`` where no field of a consolidating state has the leaves of ``params``."""
    if any(map(consolidating_states, state)):  # a wrapper, which gives the state inside its own parameters
        return
    numbered = _tree.numbered(params)
    fields = [field for field in state if any(map(jnp.ndim, jax.tree.leaves(field)))]
    alike = [field for field in fields if _tree.places(field, numbered) is not None]
    # An array that stands for a tree, such as a random key, is no field of weights.
    other = [field for field in fields if not _is_key(field)]
    pairs = [(_tree.masked_like(params, field), field) for field in alike] or [(params, one) for one in other]
    if pairs and not any(_shapes(given) == _shapes(field) for given, field in pairs):
        remedy = "pass the parameters that are trained with this state."
        _check.check_same_structure(*pairs[0], "consolidate: params", "opt_state", remedy)


def _is_key(field: Any) -> bool:
    one = jax.tree_util.treedef_is_leaf(jax.tree.structure(field))
    return one and not jnp.issubdtype(_tree.dtype_of(field), jnp.inexact)


def _shapes(tree: Any) -> list[Any]:
    return [(path, jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_pending(state: Any) -> bool:
    """Return whether a state is known to wait for an update after a boundary."""
    pending = getattr(state, "pending", None)
    known = isinstance(pending, jax.Array | np.ndarray) and not isinstance(pending, jax.core.Tracer)
    return known and bool(np.asarray(pending).any())


def _are_flattened(states: list[Any], params: optax.Params) -> bool:
    """Return whether states hold a vector of all parameters, which are no such vector themselves."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    vector = (sum(math.prod(shape) for shape in shapes),)
    return vector not in shapes and any(jnp.shape(leaf) == vector for leaf in jax.tree.leaves(states))


def restarts(state: optax.OptState) -> bool:
    """Return whether there is a state within ``state`` that restarts in an update."""
    return any(map(_restarts, jax.tree.leaves(state, is_leaf=_restarts)))


def _restarts(node: Any) -> bool:
    return callable(getattr(type(node), "restarts_in_update", None))


def check_scalable(name: str, state: Any) -> None:
    """Raise ``ValueError`` if ``name``, which multiplies updates, is around what puts weights in a place.

    Such a state is known by its method ``places_weights``.
    """
    for inside in _answers("places_weights", state):
        raise ValueError(
            f"{name}: {inside} puts weights in a place, and {name} would multiply the way there: put it "
            f"around, {inside}({name}(...), ...)."
        )


def check_outermost(name: str, *states: Any) -> None:
    """Raise ``ValueError`` if ``name``, which changes updates, is around what counts them as applied.

    Such a state is known by its method ``counts_updates``.
    """
    for inside in _answers("counts_updates", states):
        raise ValueError(
            f"{name}: {inside} counts updates as they are applied, and {name} changes them: put it behind, "
            f"optax.chain({name}(...), {inside}(...))."
        )


def _answers(method: str, state: Any) -> list[str]:
    """Return what the outermost states within ``state`` that have a method say of themselves."""

    def has_it(node: Any) -> bool:
        return callable(getattr(type(node), method, None))

    return [getattr(node, method)() for node in jax.tree.leaves(state, is_leaf=has_it) if has_it(node)]


def parameters_of(model: Any) -> Any:
    """Return the parameters of a model of Flax NNX or Equinox, without their import, or what is given."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        return nnx.state(model, nnx.Param)
    if not any(map(callable, jax.tree.leaves(model))):
        return model
    return jax.tree.map(lambda leaf: leaf if _tree.is_inexact(leaf) else None, model)


def is_nnx_optimizer(node: Any) -> bool:
    """Return whether this is an ``nnx.Optimizer``, by what it has: without Flax there is none."""
    return all(hasattr(node, name) for name in ("tx", "opt_state", "wrt"))


def trained(name: str, optimizer: Any, model: Any) -> Any:
    """Return the variables of an NNX model that an ``nnx.Optimizer`` trains, for the function ``name``."""
    from flax import nnx

    params = nnx.state(model, optimizer.wrt, **_graph(optimizer))
    if not jax.tree.leaves(params):
        raise ValueError(
            f"{name}: params has no variable of the kind {optimizer.wrt}, which this nnx.Optimizer "
            f"trains: give the model, {name}(optimizer, model)."
        )
    return params


def taken_apart(name: str, argument: str, tx: Any, params: Any) -> tuple[Any, Any, Any]:
    """Return a transformation, parameters and None; of an ``nnx.Optimizer`` and a model also the state.

    Args:
      name: the function that is called.
      argument: that of its transformation.
      tx: what stands there.
      params: parameters, or a model of Flax NNX or Equinox.

    Raises:
      TypeError: where ``tx`` is neither.
    """
    if not is_nnx_optimizer(tx):
        return _check.transformation(argument, tx), parameters_of(params), None
    own = params if parameters_of(params) is params else trained(name, tx, params)
    return tx.tx, own, tx.opt_state


def _graph(optimizer: Any) -> dict[str, Any]:
    return {"graph": optimizer.graph} if hasattr(optimizer, "graph") else {}  # not in older Flax


def _consolidate_in_place(optimizer: Any, model: Any, task_importance: optax.Params | None) -> optax.OptState:
    from flax import nnx

    params = trained("consolidate", optimizer, model)
    new = consolidate(optimizer.opt_state, params, task_importance)
    nnx.update(optimizer.opt_state, nnx.state(new, **_graph(optimizer)))
    return optimizer.opt_state


def consolidate_within(state: Any, params: optax.Params, task_importance: optax.Params | None) -> Any:
    """Return ``state`` with every consolidating state in it consolidated, if there are any."""
    return jax.tree.map(
        lambda node: node.consolidated(params, task_importance) if consolidating_states(node) else node,
        state,
        is_leaf=consolidates,
    )


def consolidates(node: Any) -> bool:
    """Return whether a node of a state has something to do at a task boundary."""
    return callable(getattr(type(node), "consolidated", None))


def consolidating_states(state: Any) -> list[Any]:
    """Return the states within ``state`` that have something to do at a task boundary.

    Of a state that wraps others, known by its method ``wrapped_state``, those within what it wraps.
    """
    found: list[Any] = []
    for node in jax.tree.leaves(state, is_leaf=consolidates):
        if consolidates(node):
            wraps = hasattr(type(node), "wrapped_state")
            found += consolidating_states(node.wrapped_state()) if wraps else [node]
    return found


def one_boolean(task_boundary: Any) -> jax.Array:
    """Return ``task_boundary`` as a boolean scalar, which it must be; None says no."""
    boundary = jnp.asarray(False if task_boundary is None else task_boundary)
    if boundary.shape or boundary.dtype != jnp.bool_:
        raise ValueError(
            f"task_boundary must be one boolean, got shape {boundary.shape} and dtype {boundary.dtype}: it "
            "says whether this update is the first of a new task."
        )
    return boundary


def consolidated_where(
    task_boundary: Any, state: State, params: optax.Params, task_importance: optax.Params | None = None
) -> State:
    """Return ``state`` after a task boundary where the (traced) extra argument says so; None says no."""
    if task_boundary is None and task_importance is not None:
        raise ValueError(
            "task_importance is taken in at a task boundary, and no task_boundary is given: give both."
        )
    if task_boundary is None or (isinstance(task_boundary, bool | np.bool_) and not task_boundary):
        return state
    boundary = one_boolean(task_boundary)
    after = state.consolidated(params, task_importance)
    merged: State = jax.tree.map(lambda new, old: jnp.where(boundary, new, old), after, state)
    return merged


def completed(tree: Any, whole: Any) -> Any:
    """Return ``tree`` with what ``whole`` has where it has None, or ``masked`` has left a leaf out."""

    def left_out(node: Any) -> bool:
        return node is None or _tree.is_masked(node)

    if not any(map(left_out, jax.tree.leaves(tree, is_leaf=left_out))):
        return tree
    return jax.tree.map(lambda x, w: w if left_out(x) else x, tree, whole, is_leaf=left_out)
