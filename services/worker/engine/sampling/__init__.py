"""From logits to a token: the request's parameters, penalties, grammars, the draw, log-probabilities."""
