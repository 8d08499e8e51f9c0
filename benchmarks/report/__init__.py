"""The report of all evidence, from the records alone: ``python -m benchmarks.report``."""
