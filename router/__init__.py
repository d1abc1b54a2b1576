"""The router: HTTP in, the right pair of nodes, tokens out."""
