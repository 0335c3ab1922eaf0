"""A long run of everything at once: writers, snapshots, kills, faults; every snapshot is compared."""
