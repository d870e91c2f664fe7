"""The router: an OpenAI endpoint that chooses adapters and their budgets for a text and has a worker answer."""
