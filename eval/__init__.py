"""Measuring models: predictions on question shards, metrics, baselines, reports."""
