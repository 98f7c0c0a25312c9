"""Which weights compete, in which units, and for how many places."""
