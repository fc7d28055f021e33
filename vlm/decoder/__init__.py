"""The decoder: a Llama stack whose every fifth layer cross-attends to image tokens."""
