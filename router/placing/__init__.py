"""Decides when and where a request runs: the admission queue, the prefix index, predicted costs."""
