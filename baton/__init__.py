"""The code that all services share: config, errors, requests, text, RPC, telemetry. Loads neither torch nor numpy."""
