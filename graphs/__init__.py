"""One folder per paper: roles, nodes, `builder` and `graph`. The commands are thin."""
