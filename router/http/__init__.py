"""HTTP: connections, who calls and how often it may, bytes out, errors, what is measured of it."""
