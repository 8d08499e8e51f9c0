"""What happens to a rate chosen in peace when the batch, the labels, a number format or the plan changes."""
