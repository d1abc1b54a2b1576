"""`baton up`: a fleet on this machine, whose service processes are started, kept running, scaled and stopped."""
