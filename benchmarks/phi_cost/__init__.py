"""What a training step takes under each phi, in units of AdamW's step on the same model."""
