"""Where optimiser state lives on a mesh: beside the parameters it belongs to."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from riemann_optax import _check, _tree
from riemann_optax.boundary import taken_apart


def state_shardings(tx: optax.GradientTransformation, params: optax.Params) -> Any:
    """Return the sharding of every array of the state of ``tx``, from the shardings of the parameters.

    On a mesh with Auto axes, ``jax.jit(tx.init)(params)`` replicates the state of *any* Optax transformation
    on every device. This function says where it should lie; pass the result as ``out_shardings`` of ``init``
    or of a training step, or as the target of a restore. It runs ``tx.init`` abstractly on a mesh whose axes
    are Explicit, so that JAX itself carries each parameter's sharding into the state: running means get the
    sharding of their parameter, factored ones its projection, counters are replicated. Nothing is allocated.

    Args:
      tx: any Optax transformation whose state has arrays of the parameters, and not one array of them all; or
        an ``nnx.Optimizer``, with its model as ``params``.
      params: the parameters, or ``jax.ShapeDtypeStruct`` with shardings, or a model of Flax NNX. All on one
        mesh; arrays on one device give state on that device.

    Returns:
      A tree of shardings in the structure of ``tx.init(params)``.

    Raises:
      ValueError: where the parameters lie on different meshes, or a leaf has a sharding that is neither a
        ``NamedSharding`` nor of one device; where ``tx.init`` joins parameters of different shardings to one
        array, as that of ``optax.flatten`` does.
      TypeError: inside of ``jit`` or ``vmap``; where ``tx`` is no gradient transformation.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
      >>> params = jax.device_put(jnp.zeros([8, 4]), NamedSharding(mesh, P("x", None)))
      >>> tx = ro.riemannian_sgd(0.1, momentum=0.9)
      >>> shardings = ro.sharding.state_shardings(tx, params)
      >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
      >>> print(tuple(optax.tree.get(state, "trace").sharding.spec))
      ('x', None)
    """
    tx, params, _ = taken_apart("state_shardings", "tx", tx, params)
    _check_concrete(params)
    mesh = _common_mesh(params)
    if mesh is None:
        leaves = jax.tree.leaves(params)
        # NumPy arrays and Python numbers are put on the default device, as tx.init puts its zeros.
        everywhere = getattr(leaves[0], "sharding", jnp.zeros([]).sharding) if leaves else None
        with _check.quiet():  # ``tx.init`` itself warns
            state = jax.eval_shape(tx.init, params)
        return jax.tree.map(lambda _: everywhere, state)
    explicit = AbstractMesh(mesh.axis_sizes, mesh.axis_names, (AxisType.Explicit,) * len(mesh.axis_names))
    abstract = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(
            jnp.shape(p), _tree.dtype_of(p), sharding=NamedSharding(explicit, _spec(p))
        ),
        params,
    )
    with jax.sharding.use_abstract_mesh(explicit):
        try:
            with _check.quiet():
                state = jax.eval_shape(tx.init, abstract)
        except Exception as error:
            if type(error).__name__ != "ShardingTypeError":  # its class is not public
                raise
            raise ValueError(
                "tx: its init joins or reshapes parameters that are sharded in different ways, as that of "
                "optax.flatten does, and JAX derives no sharding of the result: leave that transformation "
                "out, or give jax.jit(tx.init, out_shardings=...) shardings of your own."
            ) from error
    is_explicit = AxisType.Explicit in mesh.axis_types

    def placed(s: Any) -> NamedSharding:
        spec = PartitionSpec() if s.sharding is None else s.sharding.spec
        # What is not shared out is spelled as an update spells it, for another spelling would be compiled a
        # second time: on an Explicit mesh with an entry for each axis, on others with none.
        if is_explicit:
            return NamedSharding(mesh, PartitionSpec(*spec, *[None] * (s.ndim - len(spec))))
        return NamedSharding(mesh, spec if any(spec) else PartitionSpec())

    return jax.tree.map(placed, state)


def init(tx: optax.GradientTransformation, params: optax.Params) -> optax.OptState:
    """Return ``tx.init(params)`` with every array of the state beside the parameter it belongs to.

    Call it outside of ``jit``. Inside of ``jit``, on a mesh with Auto axes, JAX does not tell how parameters
    are sharded: compute :func:`state_shardings` before.

    Args:
      tx: any Optax transformation, or an ``nnx.Optimizer`` with its model as ``params``.
      params: the parameters, arrays on one mesh or on one device; or a model of Flax NNX, of which the
        ``nnx.Param`` count.

    Returns:
      The state. Each array is split over the devices as its parameter is, and copied only where that is
      copied; what belongs to no parameter, such as a counter, is on every device.

    Raises:
      ValueError, TypeError: as :func:`state_shardings`.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
      >>> params = jax.device_put(jnp.zeros([8, 4]), NamedSharding(mesh, P("x", None)))
      >>> state = ro.sharding.init(ro.phi.activity(), params)
      >>> print(tuple(state.second_moment.sharding.spec))
      ('x', None)
    """
    tx, params, _ = taken_apart("sharding.init", "tx", tx, params)
    return jax.device_put(tx.init(params), state_shardings(tx, params))


def _check_concrete(params: optax.Params) -> None:
    """Raise ``TypeError`` inside of a transformation, where arrays do not tell where they lie."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        raise TypeError(
            "params: inside of jit or vmap JAX does not tell where arrays lie: call this outside, and give "
            "what it returns to the compiled function."
        )


def _common_mesh(params: optax.Params) -> Mesh | AbstractMesh | None:
    """Return the mesh of all parameters, or None where all lie on single devices."""
    mesh: Any = None
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            if mesh is not None and sharding.mesh != mesh:
                raise ValueError(
                    f"params: {_tree.leaf_name(path)} lies on another mesh than the leaves before it; put "
                    "all parameters on one mesh with jax.device_put."
                )
            mesh = sharding.mesh
        elif sharding is not None and not isinstance(sharding, jax.sharding.SingleDeviceSharding):
            raise ValueError(
                f"params: {_tree.leaf_name(path)} has a {type(sharding).__name__}; use a NamedSharding, "
                "whose axes have names."
            )
    found: Mesh | AbstractMesh | None = mesh
    return found


def _spec(leaf: Any) -> PartitionSpec:
    sharding = getattr(leaf, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
