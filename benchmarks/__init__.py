"""Speed and memory of pyro_seq against Pyro's own state space models: `python -m benchmarks`."""
