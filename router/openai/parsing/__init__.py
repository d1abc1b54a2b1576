"""Parsers of model outputs: separate reasoning, tool calls and content."""
