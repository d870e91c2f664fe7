"""Where components live: rows of the device, their accounting, eviction, loading off the decode path."""
