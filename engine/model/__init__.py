"""What a checkpoint is and how it is computed: families, weights, one decoder for all of them."""
