"""What the parts of a network are, told by type and by name."""
