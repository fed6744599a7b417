"""A trained model in the files that other programs take."""
