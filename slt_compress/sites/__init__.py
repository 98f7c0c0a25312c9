"""Which weights compete to be kept, in which units, and how many of them are."""
