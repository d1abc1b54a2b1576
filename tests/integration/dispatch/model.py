"""The model of the nodes without an engine."""


def next_token(token_ids: list[int]) -> int:
    """The model: a function from any prefix to the next token."""
    return (sum(i * t for i, t in enumerate(token_ids, 1)) * 31 + len(token_ids)) % 997
