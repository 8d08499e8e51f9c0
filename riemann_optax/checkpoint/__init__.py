"""Safe restoring of checkpoints: a manifest to save with the checkpoint, and a target to restore to.

`Orbax <https://orbax.readthedocs.io>`_ does the saving; this module does not need it and works on trees and
plain dictionaries that JSON can hold. Orbax alone cannot distinguish two phis whose arrays have the same
names and shapes, or two releases in which a field has different meanings. The manifest does both:

.. code-block:: python

    manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), manifest=ocp.args.JsonSave(ro.checkpoint.manifest(state))))
    ...
    target = ro.checkpoint.target(tx, params)  # params with the shardings to use from now on
    saved = manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))
    ro.checkpoint.check(saved["manifest"], target)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    state = manager.restore(step, args=items)["state"]

The arguments of a transformation (decays, rates, ``alpha``) are not state: store them with the other
settings of a run. An update takes them from its transformation, never from the checkpoint. Some are in the
state as well, because ``consolidate(state, params)`` does not see the transformation: ``memory`` of
:func:`~riemann_optax.phi.online_ewc`, :func:`~riemann_optax.phi.laplace` and
:func:`~riemann_optax.phi.memory_aware_synapses`, ``memory`` and ``damping`` of
:func:`~riemann_optax.phi.synaptic_intelligence`, and ``memory``, ``mixing`` and ``damping`` of
:func:`~riemann_optax.phi.rwalk`. Each update overwrites them; only a ``consolidate`` between a restore and
the first update uses the values of the checkpoint.
"""

from riemann_optax.checkpoint.saving import FORMAT_VERSION as FORMAT_VERSION
from riemann_optax.checkpoint.saving import check, manifest, target
from riemann_optax.checkpoint.transplanting import TransplantReport, transplant

__all__ = ["TransplantReport", "check", "manifest", "target", "transplant"]
