"""The port for operators: dashboard, report of the fleet, traces."""
