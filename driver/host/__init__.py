"""What the host gives: loop devices, mounts, namespaces, shared memory, processes."""
