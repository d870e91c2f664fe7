"""One forward pass: batches, the runners of decoders and encoder-decoders, captured graphs, several processes."""
