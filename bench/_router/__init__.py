"""What stands before and behind the routers that `router` compares: nodes, OpenAI servers, proxies."""
