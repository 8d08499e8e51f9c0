"""Losses that are no fixed mean over examples, tables of embeddings, and statistics beside the weights."""
