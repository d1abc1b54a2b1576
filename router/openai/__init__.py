"""OpenAI's API: bodies in, prompts and jobs of them; tokens back, answers of them."""
