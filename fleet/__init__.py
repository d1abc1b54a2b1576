"""The `baton` command: runs a local fleet of service processes, and provides tools to inspect, use and repair it."""
