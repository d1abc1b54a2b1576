"""The attackers of `baton bench hostile`: their bodies, and the process that sends them."""
