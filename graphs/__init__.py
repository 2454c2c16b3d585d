"""One folder per paper: roles, nodes, `builder` and `graph`; the commands beside them are thin."""
