"""When a request goes, and where: the line, the prefix index, costs in milliseconds."""
