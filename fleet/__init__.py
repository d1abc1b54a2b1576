"""The `baton` command: a local fleet of services as processes, and the tools to look at it, talk to it and mend it."""
