"""Whether ``ro.riemannian_adamw`` keeps its promise: at AdamW's rate, no worse, at every size."""
