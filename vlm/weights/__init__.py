"""Model folders: reading, writing and verifying weights."""
