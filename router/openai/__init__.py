"""OpenAI's API: turns request bodies into prompts and jobs, and their tokens into answers."""
