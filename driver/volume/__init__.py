"""Block path: request slots, write path, sessions, sweep. Standard library only."""
