"""Workers found, chosen among, and survived."""
