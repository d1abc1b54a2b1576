"""The admin port: metrics, dashboard, the report of the fleet, traces of requests."""
