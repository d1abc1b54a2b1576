"""`baton chaos`: a fleet of its own under faults, and what requests see of them."""
