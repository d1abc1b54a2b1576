"""A fleet on this machine: its services as processes that are started, kept running, scaled and stopped."""
