"""From chats to token ids, and from token ids back to text."""
