"""Which replica answers: table, replicas, balancing. Pure."""
