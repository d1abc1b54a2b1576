"""The backends of the routers that `router` compares: nodes, OpenAI servers and proxies."""
