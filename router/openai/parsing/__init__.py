"""From what a model writes to what it means: reasoning, tool calls, and the text between them."""
