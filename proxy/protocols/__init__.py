"""What each protocol's answers look like: content, end, error. Pure."""
