"""A service as a process: its flags, its log, its life from start to exit code."""
