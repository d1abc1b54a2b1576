"""Loops that are too slow in Python for long prompts, compiled from C++ at installation."""
