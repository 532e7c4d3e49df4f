"""The configuration file: its model, how it is read, what it means."""
