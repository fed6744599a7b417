"""Many members of one config: planned, trained apart or in one program, summed up, compared."""
