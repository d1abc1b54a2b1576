"""What is measured: metrics and their port, timelines of requests, and OpenTelemetry's spans of them."""
