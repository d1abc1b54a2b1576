"""A node process, whichever pool it is of: its shell, its service, its routers and what they are told, its load."""
