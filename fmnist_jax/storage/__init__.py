"""What a run writes and reads back: whole-or-absent files, locks, history, checkpoints."""
