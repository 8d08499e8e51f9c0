"""Forgetting: ten permutations of the digits, learned one after the other.

Run it with ``python -m benchmarks.permuted_digits``.
"""
