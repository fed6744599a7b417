"""A research group's package, outside the library: every part of a run is its own."""
