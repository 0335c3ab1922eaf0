"""Loss of power: what a disk may hold at any moment, and what the engine makes of it."""
