"""Stages, loop and state of training; the quickstart."""
