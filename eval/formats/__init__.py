"""Readers of benchmarks as they are published, one file for each kind of file layout."""
