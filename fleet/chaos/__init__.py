"""`baton chaos`: injects faults into a fleet of its own, and checks what requests notice of them."""
