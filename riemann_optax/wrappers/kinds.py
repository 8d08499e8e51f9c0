"""Which metric for which kind of parameter: presets on top of ``optax.partition``."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from riemann_optax._axes import entry_key
from riemann_optax._check import check_transformation
from riemann_optax._conventions import name_of_table
from riemann_optax.boundary import parameters_of

Kind = Literal["matrix", "embedding", "bias", "norm", "vector"]
KINDS: tuple[str, ...] = ("matrix", "embedding", "bias", "norm", "vector")


def parameter_kinds(params: optax.Params) -> Any:
    """Label each parameter by its kind, from Flax's names for parameters and from the number of axes.

    The rules, in order, look at the last *name* of a leaf's path that is not ``value`` (Flax NNX adds one):

    ============  ===================================================================
    kind          leaf
    ============  ===================================================================
    embedding     named ``embedding`` (also if it is tied to the output layer), or two axes or
                  more and a name such as ``pos_embedding`` or ``token_embed``
    norm          named ``scale``; or ``bias`` next to a ``scale``
    bias          named ``bias``
    matrix        any other leaf with two or more axes
    vector        any other leaf
    ============  ===================================================================

    Tied weights are one leaf and get one label. For other names write a labelling function of your own.

    Args:
      params: the parameters, arrays of any dtype, or a model of Flax NNX.

    Returns:
      A tree of the labels ``"matrix"``, ``"embedding"``, ``"bias"``, ``"norm"`` and ``"vector"``.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> params = {
      ...     "dense": {"kernel": jnp.zeros([2, 3]), "bias": jnp.zeros(3)},
      ...     "layer_norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
      ... }
      >>> print(ro.parameter_kinds(params))
      {'dense': {'bias': 'bias', 'kernel': 'matrix'}, 'layer_norm': {'bias': 'norm', 'scale': 'norm'}}
    """
    params = parameters_of(params)
    places = [_place(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    norms = {place[:-1] for place in places if place[-1:] == ("scale",)}

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        place = _place(path)
        last = place[-1] if place else ""
        if last == "embedding" or (jnp.ndim(leaf) >= 2 and name_of_table(last)):
            return "embedding"
        if last == "scale" or (last == "bias" and place[:-1] in norms):
            return "norm"
        if last == "bias":
            return "bias"
        return "matrix" if jnp.ndim(leaf) >= 2 else "vector"

    return jax.tree_util.tree_map_with_path(label, params)


def partition_by_kind(
    default: optax.GradientTransformation, **by_kind: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Give each kind of parameter an optimiser of its own: ``optax.partition`` by :func:`parameter_kinds`.

    A common choice gives norms and biases Adam, since their few weights share no fan-in to compare:
    ``partition_by_kind(ro.riemannian_adamw(0.003), norm=optax.adam(0.003), bias=optax.adam(0.003))``. Means
    over ``"tree"`` then run over the parameters of one kind. A ``default`` that draws random numbers draws
    the same ones for every kind, as it has one key: give each kind its own.

    What is given for a kind that no array has does nothing: look at :func:`parameter_kinds` where the names
    are not Flax's.

    An embedding row without a gradient does not move (without momentum and weight decay), but its phi still
    decays at every update. When the row occurs again its ``E`` is smaller, and its step larger.

    Args:
      default: the optimiser of every kind not named.
      **by_kind: optimisers for ``matrix``, ``embedding``, ``bias``, ``norm`` or ``vector``.

    Returns:
      A gradient transformation with state ``optax.PartitionState``.

    Raises:
      ValueError: for an unknown kind.
      TypeError: where a value is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> metric = ro.riemannian_sgd(1.0, momentum=None, alpha=1.0, conformal=None)
      >>> tx = ro.partition_by_kind(metric, bias=optax.sgd(1.0))
      >>> params = {"kernel": jnp.ones([1, 1]), "bias": jnp.ones(1)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(updates["kernel"], updates["bias"])
      [[-0.5]] [-1.]
    """
    for kind, tx in by_kind.items():
        if kind not in KINDS:
            raise ValueError(f"{kind} is no kind of parameter: use one of {', '.join(KINDS)}.")
        check_transformation(kind, tx)
    check_transformation("default", default)
    return optax.partition({kind: by_kind.get(kind, default) for kind in KINDS}, parameter_kinds)


def _place(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the keys and indices of a path up to the last name; a box's "value" is none."""
    place = [entry_key(entry) for entry in path]
    if place[-1:] == ["value"]:
        place.pop()
    while place and not isinstance(place[-1], str):
        place.pop()
    return tuple(place)
