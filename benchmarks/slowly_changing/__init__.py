"""Loss of plasticity: regression on a target whose inputs change slowly, for a million steps.

Run it with ``python -m benchmarks.slowly_changing``.
"""
