"""How the fields of a state change with the coordinates of the weights: declared on its class."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

T = TypeVar("T")


class StateFields(NamedTuple):
    """How the fields of one state class change with the coordinates of the weights.

    Attributes:
      linear: fields that are linear in gradients or weights.
      squared: second moments, variances, diagonals of a curvature, and any other value of each coordinate
        that mixes as a variance does.
      refused: fields that depend on the coordinates and cannot be carried from one basis to another.
      captured: those linear fields that ``init`` fills with the weights, before there is a basis.
      nonnegative: those squared fields that are never negative, such as second moments.
      weights: those linear fields that hold weights: where a weight is drawn anew they hold the new one.
      exact: fields of which small differences are taken: they are not rounded.
      invariant: fields that no basis changes; whoever encloses them says so, not their class.
    """

    linear: tuple[str, ...] = ()
    squared: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    captured: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    invariant: tuple[str, ...] = ()


def declare_fields(
    linear: tuple[str, ...] = (),
    squared: tuple[str, ...] = (),
    captured: tuple[str, ...] = (),
    nonnegative: tuple[str, ...] = (),
    weights: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
    exact: tuple[str, ...] = (),
) -> Callable[[type[T]], type[T]]:
    """Declare, on a state class, how its fields change with the coordinates of the weights.

    Sets the class attributes ``linear_fields``, ``squared_fields``, ``captured_fields``,
    ``nonnegative_fields``, ``weight_fields``, ``refused_fields`` and ``exact_fields``, which a class may as
    well have without this decorator.

    Args:
      linear: fields that are linear in gradients or weights, such as a momentum or a copy of the weights.
      squared: second moments, variances, diagonals of a curvature.
      captured: those linear fields that ``init`` fills with the weights; better leave that to the first
        update.
      nonnegative: those squared fields that are never negative: 8-bit state then spends no bit on a sign.
      weights: those linear fields that hold weights, such as an anchor: where
        :func:`riemann_optax.reset_units` draws a weight anew they hold the new one, and no longer the old.
      refused: fields that depend on the coordinates and that no change of basis can carry.
      exact: fields of which small differences are taken, such as the weights at the last update:
        :func:`riemann_optax.low_precision_state` leaves them as they are.

    Raises:
      ValueError: for a name that is no field of the class.
    """

    def declare(kind: type[T]) -> type[T]:
        for name in (*linear, *squared, *captured, *nonnegative, *weights, *refused, *exact):
            if name not in getattr(kind, "_fields", ()):
                raise ValueError(f"{kind.__name__} has no field {name!r} to declare.")
        kind.linear_fields, kind.squared_fields = linear, squared  # type: ignore[attr-defined]
        kind.captured_fields, kind.nonnegative_fields = captured, nonnegative  # type: ignore[attr-defined]
        kind.weight_fields, kind.refused_fields = weights, refused  # type: ignore[attr-defined]
        kind.exact_fields = exact  # type: ignore[attr-defined]
        return kind

    return declare


def is_of_metric(state: Any) -> bool:
    """Return whether a state says that its values are of ``E``, by the class attribute of that name.

    A basis mixes them as it mixes diagonals, and a weight without a gradient has no 0 there.
    """
    return bool(getattr(type(state), "is_of_metric", False))


# What Optax's own state classes hold, by their names: not all of them are public.
_OPTAX_STATES: dict[str, StateFields] = {
    "ApplyEvery": StateFields(linear=("grad_acc",)),
    "COCOBState": StateFields(
        linear=("init_particles", "cumulative_gradients"),
        refused=("scale", "subgradients", "reward"),
        captured=("init_particles",),
    ),
    "DAdaptAdamWState": StateFields(linear=("exp_avg", "grad_sum"), squared=("exp_avg_sq",)),
    "DoGState": StateFields(linear=("init_params",), captured=("init_params",)),
    "DoWGState": StateFields(linear=("init_params",), captured=("init_params",)),
    "EmaState": StateFields(linear=("ema",)),
    "FactoredState": StateFields(refused=("v_row", "v_col")),
    "MadgradState": StateFields(linear=("s", "x0"), squared=("grad_sum_sq",), captured=("x0",)),
    "MechanicState": StateFields(linear=("x0",), captured=("x0",)),
    "MomoAdamState": StateFields(linear=("exp_avg",), squared=("exp_avg_sq",)),
    "MomoState": StateFields(linear=("exp_avg",)),
    "MultiStepsState": StateFields(linear=("acc_grads",)),
    "MuonState": StateFields(linear=("mu",)),
    "ProdigyState": StateFields(
        linear=("exp_avg", "grad_sum", "params0"), squared=("exp_avg_sq",), captured=("params0",)
    ),
    "SAMState": StateFields(linear=("cache",), captured=("cache",)),
    "ScaleByAdaDeltaState": StateFields(squared=("e_g", "e_x")),
    "ScaleByAdamState": StateFields(linear=("mu",), squared=("nu",)),
    "ScaleByAdanState": StateFields(linear=("m", "v", "g"), squared=("n",)),
    "ScaleByAdemamixState": StateFields(linear=("m1", "m2"), squared=("nu",)),
    "ScaleByAmsgradState": StateFields(linear=("mu",), squared=("nu", "nu_max")),
    "ScaleByBacktrackingLinesearchState": StateFields(linear=("grad",)),
    "ScaleByBeliefState": StateFields(linear=("mu",), squared=("nu",)),
    "ScaleByDistanceOverGradientsState": StateFields(linear=("init_params",), captured=("init_params",)),
    "ScaleByLBFGSState": StateFields(
        linear=("params", "updates", "diff_params_memory", "diff_updates_memory"),
        captured=("params",),
        exact=("updates", "diff_params_memory", "diff_updates_memory"),
    ),
    "ScaleByLionState": StateFields(linear=("mu",)),
    "ScaleByNovogradState": StateFields(linear=("mu",)),
    "ScaleByOptimisticGradientState": StateFields(linear=("previous_gradient",)),
    "ScaleByRStdDevState": StateFields(linear=("mu",), squared=("nu",)),
    "ScaleByRmsState": StateFields(squared=("nu",)),
    "ScaleByRmsWithCountState": StateFields(squared=("nu",)),
    "ScaleByRssState": StateFields(squared=("sum_of_squares",)),
    "ScaleBySimplifiedAdEMAMixState": StateFields(linear=("m",), squared=("n",)),
    "ScaleByZoomLinesearchState": StateFields(linear=("grad",)),
    "ScheduleFreeState": StateFields(linear=("z",), captured=("z",)),
    "SophiaState": StateFields(linear=("mu",), squared=("nu",)),
    "TraceState": StateFields(linear=("trace",)),
}


def state_fields(kind: type[Any]) -> StateFields:
    """Return what a state class declares by its class attributes ``linear_fields`` and ``squared_fields``.

    Optax declares nothing; its own classes are in a table here. A copy of the first weights is exact, whoever
    made it: what is read of it is how far the weights have gone since.
    """
    names = ("linear", "squared", "refused", "captured", "nonnegative", "weight", "exact")
    own = StateFields(*(tuple(getattr(kind, f"{name}_fields", ())) for name in names))
    if not any(own) and kind.__module__.split(".")[0] == "optax":
        own = _OPTAX_STATES.get(kind.__name__, own)
        if kind.__name__ != "SophiaState":  # the diagonal of a Hessian may be negative
            own = own._replace(nonnegative=own.squared)
    return own._replace(exact=tuple(dict.fromkeys((*own.exact, *own.captured))))


def owners_and_fields(state: Any, path: tuple[Any, ...]) -> list[tuple[Any, str]]:
    """Return the nodes on ``path`` that have named fields, each with the field that the path goes on by."""
    node, found = state, []
    for entry in path:
        if isinstance(entry, jax.tree_util.GetAttrKey):
            found.append((node, entry.name))
            node = getattr(node, entry.name)
        else:
            key: Any = getattr(entry, "key", getattr(entry, "idx", None))
            if not hasattr(node, "__getitem__"):
                return [*found, (node, str(entry))]
            node = node[key]
    return found


def owner_and_field(state: Any, path: tuple[Any, ...]) -> tuple[Any, str]:
    """Return the innermost of :func:`owners_and_fields`."""
    return next(reversed(owners_and_fields(state, path)), (None, ""))
