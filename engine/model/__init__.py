"""Checkpoints and their computation: model families, weights, and one decoder for all of them."""
