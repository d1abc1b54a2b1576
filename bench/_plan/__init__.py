"""Capacity planning: fits the costs of a fleet's nodes from outside, and simulates a workload on a number of them."""
