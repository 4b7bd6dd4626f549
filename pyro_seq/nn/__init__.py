r"""Networks without randomness."""
