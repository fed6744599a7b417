"""fmnist_jax: image classifiers in JAX."""
