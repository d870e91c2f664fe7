"""From tokens to what a client reads: text, stop strings, events, one stream of them per request."""
