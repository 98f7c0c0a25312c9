"""The parts of a network, recognised by type and by name."""
