"""Speed and memory of pyro_seq against Pyro, and against code written by hand."""
