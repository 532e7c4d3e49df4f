"""Answers on their way: numbered events, their end, who listens."""
