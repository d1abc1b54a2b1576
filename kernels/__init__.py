"""What a model computes beside its dense algebra: one interface, three backends (`api`, `dispatch`)."""
