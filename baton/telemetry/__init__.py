"""Metrics and the port that serves them, timelines of requests, and their export as OpenTelemetry spans."""
