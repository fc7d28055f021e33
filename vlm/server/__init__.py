"""The model over HTTP, in the form of OpenAI's API."""
