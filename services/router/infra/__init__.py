"""What the router needs of the world: the registry's catalogue, the workers, the encoder's thread."""
