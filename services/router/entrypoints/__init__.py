"""Doors of the router: REST in OpenAI's shape, and gRPC."""
