"""Our models in harnesses of others."""
