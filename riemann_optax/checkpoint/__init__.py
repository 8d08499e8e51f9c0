"""What lets a checkpoint be restored safely: a manifest to save beside it, and a target to restore to.

`Orbax <https://orbax.readthedocs.io>`_ does the saving; this module needs none of it and works on trees and
plain dictionaries that JSON can hold. By itself Orbax tells neither the states of two phis apart whose arrays
have the same names and shapes, nor one release's meaning of a field from another's. The manifest does both:

.. code-block:: python

    manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), manifest=ocp.args.JsonSave(ro.checkpoint.manifest(state))))
    ...
    target = ro.checkpoint.target(tx, params)  # params: where they are to lie from now on
    saved = manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))
    ro.checkpoint.check(saved["manifest"], target)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    state = manager.restore(step, args=items)["state"]

The numbers that a transformation is made with (decays, rates, ``alpha``) are no state: keep them where you
keep the other settings of a run. An update takes them from its transformation, never from the checkpoint.
Some are in the state as well, because ``consolidate(state, params)`` sees no transformation: ``memory`` of
:func:`~riemann_optax.phi.online_ewc`, :func:`~riemann_optax.phi.laplace` and
:func:`~riemann_optax.phi.memory_aware_synapses`, ``memory`` and ``damping`` of
:func:`~riemann_optax.phi.synaptic_intelligence`, and ``memory``, ``mixing`` and ``damping`` of
:func:`~riemann_optax.phi.rwalk`. Each update writes them anew; only a ``consolidate`` between a restore and
the first update uses those of the checkpoint.
"""

from riemann_optax.checkpoint.saving import FORMAT_VERSION as FORMAT_VERSION
from riemann_optax.checkpoint.saving import check, manifest, target
from riemann_optax.checkpoint.transplanting import TransplantReport, transplant

__all__ = ["TransplantReport", "check", "manifest", "target", "transplant"]
