"""The router: takes HTTP requests, chooses the nodes for each, and streams the tokens back."""
