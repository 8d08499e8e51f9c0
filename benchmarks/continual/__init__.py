"""Continual learning: the metric beside published rules on five streams, every one with as many trials.

Run it with ``python -m benchmarks.continual``.
"""
