"""Shipped configs: one file a model, published or recommended."""
