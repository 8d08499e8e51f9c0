"""A rate is chosen undisturbed; then the batch, the labels, the number format or the plan changes."""
