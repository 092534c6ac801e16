"""Which window is run next, and on which lane."""
