"""The policies: one file for each value of `balance`."""
