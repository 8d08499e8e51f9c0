"""What one update costs, beside every peer in one run: ``python -m benchmarks.step_cost``."""
