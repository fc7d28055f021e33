"""Generation over token ids; knows nothing about tokenisation."""
