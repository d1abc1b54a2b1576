"""From logits to tokens: a pure function of logits, parameters, seed and position."""
