"""A service as a process: its flags, its log, and its life cycle from start to exit code."""
