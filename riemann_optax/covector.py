"""Covector: a gradient leaf with its metric attached, and the one error every misuse of it shows."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check
from riemann_optax._tree import bare, leaf_name

_HELP = (
    "the metric is still attached: move this transformation before compute_metric "
    "or after scale_by_inverse_metric, which the chain must have"
)


class MetricAttachedError(ValueError):
    """A transformation that knows nothing of metrics was applied between the two stages.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> stages = ro.compute_metric(ro.phi.activity()), ro.scale_by_inverse_metric()
      >>> tx = optax.chain(stages[0], optax.scale(2.0), stages[1])
      >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
      Traceback (most recent call last):
          ...
      riemann_optax.covector.MetricAttachedError: the only leaf: the metric is still attached: move this
      transformation before compute_metric or after scale_by_inverse_metric, which the chain must have.
    """


class _CovectorType(type):
    """Gives the class a repr that helps: JAX prints it when a Covector reaches a jit or cond boundary."""

    def __repr__(cls) -> str:
        return f"<class 'riemann_optax.Covector'> ({_HELP})"


class Covector(metaclass=_CovectorType):
    r"""One leaf of a gradient together with the diagonal metric of its parameter.

    The gradient :math:`\partial_i f` of a loss is a covector; the metric :math:`g = \mathrm{diag}(E)` turns
    it into the tangent vector :math:`\partial_i f / E_i` along which an optimiser may walk. Between
    :func:`compute_metric` and :func:`scale_by_inverse_metric` each leaf is a ``Covector``.

    It is deliberately neither an array nor a pytree node: to ``jax.tree.map`` it is a leaf, and whatever
    treats that leaf as an array raises :class:`MetricAttachedError`. Only ``shape``, ``ndim``, ``size`` and
    ``dtype`` are answered, so that masks such as ``lambda p: jax.tree.map(lambda x: x.ndim > 1, p)`` work.

    Args:
      components: the gradient leaf, any shape, floating point or complex.
      values: ``E``, or ``1/E`` where ``inverted``; float32 or wider, broadcastable to ``components``.
      inverted: whether ``values`` holds ``1/E``; then a synapse that may not move is a plain 0.
      path: the leaf's key path, for messages.
      phi: the values of phi that stage 1 made the metric from, where it was stage 1.
      momentum: the momentum that phi keeps of these components, where it keeps one: a function of whether to
        look ahead (Nesterov).

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> covector = ro.Covector(jnp.array([2.0, 6.0]), jnp.array([1.0, 4.0]))
      >>> print(covector.metric, covector.raise_index())  # E, and the gradient divided by it
      [1. 4.] [2.  1.5]
      >>> print(covector.to_frame())  # the gradient divided by the root of E
      [2. 3.]
    """

    __slots__ = ("_inverted", "_path", "_values", "components", "momentum", "phi")
    __hash__ = None  # type: ignore[assignment]

    components: jax.Array
    phi: jax.Array | None
    momentum: Callable[[bool], jax.Array] | None

    def __init__(
        self,
        components: jax.Array,
        values: jax.Array,
        *,
        inverted: bool = False,
        path: tuple[Any, ...] = (),
        phi: jax.Array | None = None,
        momentum: Callable[[bool], jax.Array] | None = None,
    ) -> None:
        self.components = components
        self.phi = phi
        self.momentum = momentum
        self._values = values
        self._inverted = inverted
        self._path = path

    @property
    def metric(self) -> jax.Array:
        """The diagonal ``E`` of the metric."""
        return 1 / self._values if self._inverted else self._values

    @property
    def inverse_metric(self) -> jax.Array:
        """The diagonal ``1/E`` of the inverse metric: the effective rate of each weight."""
        return self._values if self._inverted else 1 / self._values

    @property
    def inverted(self) -> bool:
        """Whether the rates ``1/E``, not ``E``, are what is stored."""
        return self._inverted

    def raise_index(self) -> jax.Array:
        """Return the tangent vector ``components / E`` in the dtype of ``components``."""
        if self._inverted:
            return _componentwise(jnp.multiply, self.components, self._values)
        return _componentwise(jnp.divide, self.components, self._values)

    def to_frame(self) -> jax.Array:
        """Return ``components / sqrt(E)``, the coordinates in the orthonormal frame of the metric."""
        root = jnp.sqrt(self._values)
        return _componentwise(jnp.multiply if self._inverted else jnp.divide, self.components, root)

    def from_frame(self, frame_components: jax.Array) -> jax.Array:
        """Return the tangent vector whose coordinates in the orthonormal frame are given."""
        return self.with_components(frame_components).to_frame()

    def with_metric(self, metric: jax.Array) -> "Covector":
        """Return the same components under another metric ``E``."""
        return Covector(self.components, metric, path=self._path, phi=self.phi, momentum=self.momentum)

    def with_inverse_metric(self, inverse: jax.Array) -> "Covector":
        """Return the same components under another inverse metric ``1/E``."""
        other = self.with_metric(inverse)
        other._inverted = True
        return other

    def with_components(self, components: jax.Array) -> "Covector":
        """Return other components under the same metric; phi's momentum is not theirs."""
        return Covector(components, self._values, inverted=self._inverted, path=self._path, phi=self.phi)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the components."""
        return self.components.shape

    @property
    def ndim(self) -> int:
        """Number of axes of the components."""
        return self.components.ndim

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.components.size

    @property
    def dtype(self) -> Any:
        """Dtype of the components."""
        return self.components.dtype

    def __repr__(self) -> str:
        return f"<Covector {leaf_name(self._path)}, shape {self.shape}, dtype {self.dtype}: {_HELP}>"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise MetricAttachedError(f"{leaf_name(self._path)}: {_HELP}.")

    # A property, because JAX asks for the attribute before it calls it and shows its own message for
    # whatever a method of this name raises; a ValueError, because JAX replaces a TypeError.
    @property
    def __jax_array__(self) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        # Not set yet, as in a copy under way: the message needs them itself. Or how to copy it, asked of all.
        if name in (*Covector.__slots__, "__copy__", "__deepcopy__"):
            raise AttributeError(name)
        self._refuse()

    __array__ = __array_ufunc__ = __iter__ = __len__ = __contains__ = _refuse
    __getitem__ = __setitem__ = __delitem__ = _refuse
    __bool__ = __float__ = __int__ = __index__ = __complex__ = _refuse
    __neg__ = __pos__ = __abs__ = __invert__ = __round__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
    __divmod__ = __rdivmod__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _refuse
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _refuse
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _refuse


def _componentwise(
    operation: Callable[[jax.Array, jax.Array], jax.Array], components: jax.Array, factor: jax.Array
) -> jax.Array:
    """Apply ``operation(components, factor)`` with a real factor, in the wider of the two precisions."""
    if jnp.iscomplexobj(components):
        # Real and imaginary part separately: a complex division would cost four real ones and overflow.
        return jax.lax.complex(
            _componentwise(operation, components.real, factor),
            _componentwise(operation, components.imag, factor),
        )
    dtype = np.promote_types(components.dtype, factor.dtype)
    return operation(components.astype(dtype), factor.astype(dtype)).astype(components.dtype)


def require_covectors(updates: optax.Updates, name: str) -> None:
    """Raise ``ValueError`` where there are leaves but none carries a metric."""
    leaves = jax.tree.leaves(updates)
    if leaves and not any(isinstance(leaf, Covector) for leaf in leaves):
        raise ValueError(
            f"{name}: no leaf carries a metric, so the step would silently be Euclidean: put "
            "compute_metric(phi, alpha) before it in the same chain. If it is there, another stage between "
            "them divides by the metric already (scale_by_metric does both): leave one of the two out."
        )


def map_covectors(
    function: Callable[[Covector], Any], updates: Any, euclidean: Callable[[Any], Any] = lambda x: x
) -> Any:
    """Map ``function`` over the leaves that carry a metric and ``euclidean`` over the others."""
    return jax.tree.map(lambda x: function(x) if isinstance(x, Covector) else euclidean(x), updates)


def plus(update: Any, change: jax.Array) -> Any:
    """Return an update, a covector or an array, with ``change`` added in the update's dtype."""
    if isinstance(update, Covector):
        return update.with_components(update.components + change.astype(update.dtype))
    return update + change.astype(update.dtype)


def check_leaves(updates: Any, params: Any) -> list[Any]:
    """Return the updates' leaves; ``ValueError`` where they are not as many as the parameters'."""
    leaves = jax.tree.leaves(updates, is_leaf=lambda leaf: isinstance(leaf, Covector))
    if len(leaves) != len(jax.tree.leaves(params)):
        _check.check_gradients(bare(map_covectors(lambda c: c.components, updates)), bare(params))
    return leaves
