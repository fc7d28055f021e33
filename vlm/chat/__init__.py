"""Chats as the model reads them: tokenizer, template, and the processor that joins them."""
