"""Projectors: vision features to the width of the decoder."""
