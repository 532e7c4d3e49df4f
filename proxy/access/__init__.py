"""Who may do what: keys and origins. Pure."""
