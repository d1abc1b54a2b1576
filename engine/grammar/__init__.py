"""Structured output: grammars are compiled outside the step loop and applied to logits as masks.

A request's state in its grammar is a function of its output tokens alone.
"""
