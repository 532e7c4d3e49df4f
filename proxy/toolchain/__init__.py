"""The gateway's tool loop: rounds of completions, the tool calls between them, the servers that run them."""
