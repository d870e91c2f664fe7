"""The layers of an unmodified model that add components, and how they are put in."""
