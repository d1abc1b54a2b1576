"""The two ends of the transfers that `transfer` measures, and what they are compared with."""
