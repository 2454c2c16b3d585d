"""One file a system: its roles, nodes, `builder` and `graph`."""
