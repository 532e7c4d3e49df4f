"""The model servers' side: connections, pool, dispatch, the built-in model."""
