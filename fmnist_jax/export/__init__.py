"""A trained model in files that other programs take: made of one description, checked, written."""
