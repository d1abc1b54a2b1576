"""Attention, norms, RoPE, activations and packed linear layers: one interface (`api`), three backends (`dispatch`)."""
