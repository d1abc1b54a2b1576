"""`baton doctor`: checks what this machine offers a fleet."""
