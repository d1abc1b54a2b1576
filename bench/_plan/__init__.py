"""Planning: what nodes of a fleet can do, fitted from outside, and what so many of them would do under a workload."""
