"""`baton doctor`: what this machine offers."""
