r"""Maths on tensors: no Pyro, no parameters. Tensors in, NamedTuples out."""
