"""Near a minimum: the Hessian's eigenvalues under a metric, and the rates and speeds they allow."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse import linalg as sparse_linalg

from riemann_optax import _check, _tree
from riemann_optax.fields.base import MetricField, to_working_tree

Method = Literal["auto", "dense", "lanczos"]
METHODS: tuple[str, ...] = get_args(Method)

_DENSE_LIMIT = 1024
_COLUMNS_AT_ONCE = 64
_TOLERANCE = {4: 1e-5, 8: 1e-7}  # by bytes per weight: what the rounding of a Hessian-vector product allows


class Spectrum(NamedTuple):
    """What :func:`preconditioned_spectrum` found, in float64 on the host.

    Attributes:
      eigenvalues: of ``g^-1/2 H g^-1/2``, ascending: all of them, or the smallest and the largest.
      euclidean_eigenvalues: of ``H``, likewise.
    """

    eigenvalues: np.ndarray[Any, np.dtype[np.float64]]
    euclidean_eigenvalues: np.ndarray[Any, np.dtype[np.float64]]

    @property
    def largest_stable_rate(self) -> float:
        """The rate ``2 / largest eigenvalue`` above which plain steps diverge along some direction.

        Infinite where no curvature is positive. Says nothing of directions of negative curvature, along which
        every rate leads away from the saddle.
        """
        largest = float(self.eigenvalues[-1])
        return 2 / largest if largest > 0 else math.inf

    @property
    def best_rate(self) -> float:
        """The constant rate of the fastest contraction, ``2 / (smallest + largest eigenvalue)``.

        Where an eigenvalue is not positive no rate contracts along it: then the largest stable one.
        """
        smallest, largest = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        return 2 / (smallest + largest) if smallest > 0 else self.largest_stable_rate

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue under the metric; infinite where the smallest is not positive."""
        return _condition(self.eigenvalues)

    @property
    def euclidean_condition_number(self) -> float:
        """Largest over smallest eigenvalue of the Hessian itself."""
        return _condition(self.euclidean_eigenvalues)

    def contraction(self, learning_rate: float) -> float:
        """Return the factor per step of the slowest mode, ``max abs(1 - learning_rate * eigenvalue)``.

        Of plain steps, without momentum, while the metric stays as it is. Above 1 they diverge.
        """
        ends = self.eigenvalues[[0, -1]]
        return float(np.max(np.abs(1 - learning_rate * ends)))


def preconditioned_spectrum(
    loss: Callable[[optax.Params], jax.Array],
    params: optax.Params,
    metric: MetricField | optax.Updates | None,
    *,
    method: Method = "auto",
    number: int = 3,
    max_iterations: int = 1000,
) -> Spectrum:
    r"""Return the eigenvalues of :math:`g^{-1/2} H g^{-1/2}`: stability and speed near a minimum.

    There the step :math:`w - r\,g^{-1}\nabla f` multiplies the error along the i-th eigenvector by
    :math:`1 - r\lambda_i`: it converges for rates below :math:`2/\lambda_{\max}`, and slowest where
    :math:`|1 - r\lambda_i|` is largest. All comes from Hessian-vector products; only ``"dense"`` keeps the
    whole matrix.

    Args:
      loss: a function of the parameters, twice differentiable; jit it where calls are slow.
      params: the point, a tree of real leaves, best a minimum.
      metric: a tree of ``E`` in the structure of ``params``, a metric field, or None for ``E = 1``. Of any
        chain at its current state: ``ro.metric_at(tx, gradients, state, params)``.
      method: ``"dense"`` finds all eigenvalues and holds a matrix of (number of weights) squared,
        ``"lanczos"`` only the ends of the spectrum, by SciPy's implicitly restarted Lanczos (ARPACK), with
        some forty vectors on the host; ``"auto"`` is dense up to 1024 weights. Lanczos knows the smallest
        eigenvalue to about 1e-6 of the largest one, in float64 1e-9.
      number: how many eigenvalues ``"lanczos"`` finds at each end.
      max_iterations: restarts of ``"lanczos"``.

    Returns:
      A :class:`Spectrum`: eigenvalues with and without the metric, ``largest_stable_rate``, ``best_rate``,
      ``condition_number``, ``euclidean_condition_number`` and ``contraction(learning_rate)``. At a saddle no
      rate is stable along the directions of negative curvature; the rates are then those of the positive.

    Raises:
      TypeError: for a leaf that is not real and floating point.
      ValueError: for an unknown method, a metric of another structure or not positive and finite, second
        derivatives that are not finite, or where Lanczos does not converge.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> loss = lambda w: (w[0] ** 2 + 50 * w[1] ** 2) / 2
      >>> spectrum = ro.preconditioned_spectrum(loss, jnp.zeros(2), jnp.array([1.0, 25.0]))
      >>> print(spectrum.eigenvalues, spectrum.condition_number, spectrum.euclidean_condition_number)
      [1. 2.] 2.0 50.0
      >>> print(spectrum.largest_stable_rate, spectrum.contraction(0.5))
      1.0 0.5

    References:
      Lehoucq, Sorensen and Yang, `ARPACK Users' Guide <https://doi.org/10.1137/1.9780898719628>`_, SIAM,
      1998
    """
    _check.check_choice("method", method, METHODS)
    _check.check_count("number", number)
    params = to_working_tree(params, "params")
    if isinstance(metric, MetricField):
        metric = metric.metric(params)
    if metric is None:
        metric = jax.tree.map(jnp.ones_like, params)
    _check.check_same_structure(metric, params, "metric", "params", "pass one E per weight.")
    scale = _frame_factor(metric)
    size = scale.size
    if size == 0:
        raise ValueError("params must hold at least one weight.")
    if method == "auto":
        method = "dense" if size <= _DENSE_LIMIT else "lanczos"
    # Linearised once: the loss is not run again for each product.
    _, product = jax.linearize(jax.grad(loss), params)
    if method == "dense":
        hessian = _finite(_dense(product, params))
        return Spectrum(
            eigenvalues=np.linalg.eigvalsh(hessian * np.outer(scale, scale)),
            euclidean_eigenvalues=np.linalg.eigvalsh(hessian),
        )

    def along(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return _finite(_flatten(product(_unflatten(vector, params))))

    # The products are as exact as the narrowest leaf.
    tolerance = _TOLERANCE[min(leaf.dtype.itemsize for leaf in jax.tree.leaves(params))]
    if size < 3:
        raise ValueError('method="lanczos" needs at least 3 weights: use method="dense".')
    return Spectrum(
        eigenvalues=_ends(lambda v: scale * along(scale * v), size, number, max_iterations, tolerance),
        euclidean_eigenvalues=_ends(along, size, number, max_iterations, tolerance),
    )


def _condition(eigenvalues: np.ndarray[Any, Any]) -> float:
    return float(eigenvalues[-1] / eigenvalues[0]) if eigenvalues[0] > 0 else math.inf


def _finite(second: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return second derivatives; raise ``ValueError`` unless all are finite."""
    if not np.isfinite(second).all():
        raise ValueError(
            "loss has second derivatives at params that are not finite: move params off the point where the "
            "loss is not smooth (a root or a logarithm of 0), or look for an overflow in the loss."
        )
    return second


def _frame_factor(metric: Any) -> np.ndarray[Any, Any]:
    """Return ``1/sqrt(E)`` of all weights as one vector."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(metric):
        values = np.asarray(leaf)
        if np.iscomplexobj(values):
            raise TypeError(f"metric: {_tree.leaf_name(path)} has dtype {values.dtype}, and E is real.")
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(
                f"metric: {_tree.leaf_name(path)} is not positive and finite everywhere: clip it with "
                "clip_metric."
            )
    factor: np.ndarray[Any, Any] = 1 / np.sqrt(_flatten(metric))
    return factor


def _dense(product: Callable[[Any], Any], params: Any) -> np.ndarray[Any, Any]:
    """Return the Hessian, made symmetric."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    matrix = np.zeros((size, size))
    for start in range(0, size, _COLUMNS_AT_ONCE):
        units = np.eye(size)[start : start + _COLUMNS_AT_ONCE]
        trees = [_unflatten(unit, params) for unit in units]
        columns = jax.vmap(product)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))
        for offset in range(len(units)):
            matrix[start + offset] = _flatten(jax.tree.map(lambda leaf, i=offset: leaf[i], columns))
    return (matrix + matrix.T) / 2


def _ends(
    apply: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    size: int,
    number: int,
    max_iterations: int,
    tolerance: float,
) -> np.ndarray[Any, Any]:
    """Return the smallest and the largest eigenvalues of a symmetric operator, ascending."""
    number = min(number, (size - 1) // 2)
    if not apply(np.random.default_rng(0).normal(size=size)).any():  # ARPACK refuses an operator that is 0
        return np.zeros(2 * number)

    def largest(matvec: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        try:
            eigenvalues = sparse_linalg.eigsh(
                sparse_linalg.LinearOperator((size, size), matvec=matvec, dtype=np.float64),
                k=number,
                which="LA",
                ncv=min(size, max(4 * number, 40)),
                maxiter=max_iterations,
                tol=tolerance,
                v0=np.random.default_rng(0).normal(size=size),
                return_eigenvectors=False,
            )
        except sparse_linalg.ArpackNoConvergence as error:
            raise ValueError(
                f"preconditioned_spectrum: Lanczos found {len(error.eigenvalues)} of {number} eigenvalues in "
                f"{max_iterations} restarts: raise max_iterations, lower number, or use float64."
            ) from error
        return np.sort(eigenvalues)

    top = largest(apply)
    # Find small eigenvalues as the largest ones of the shifted operator: relative to their own size they
    # would not converge, and they are known to the rounding of the largest one only.
    shift = float(np.abs(top).max())
    bottom = shift - largest(lambda vector: shift * vector - apply(vector))[::-1]
    return np.concatenate([bottom, top])


def _flatten(tree: Any) -> np.ndarray[Any, Any]:
    """Gather a tree into one float64 vector on the host."""
    leaves = [np.asarray(leaf, dtype=np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def _unflatten(vector: np.ndarray[Any, Any], params: Any) -> Any:
    """Lay a vector out as ``params``, with their shapes, dtypes and shardings."""
    leaves, treedef = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [
        jax.device_put(part.reshape(leaf.shape).astype(leaf.dtype), leaf.sharding)
        for part, leaf in zip(np.split(vector, ends), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, parts)
