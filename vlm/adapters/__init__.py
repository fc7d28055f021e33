"""LoRA adapters: which layers have them, their folders, and a base with them merged in."""
