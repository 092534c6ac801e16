"""What is written: the bundle as a whole, its card, and an archive of it."""
