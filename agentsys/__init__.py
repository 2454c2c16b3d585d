"""agentsys: agents made of roles that write training data."""
