"""Shipped spaces to search: ranges and choices by dotted field, one file a family of configs."""
