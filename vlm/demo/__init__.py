"""Captioning and question answering in the browser."""
