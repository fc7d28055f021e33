"""Samples to shards to batches."""
