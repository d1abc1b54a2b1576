"""The two ends of the transfers that `transfer` measures, and the methods they are compared with."""
