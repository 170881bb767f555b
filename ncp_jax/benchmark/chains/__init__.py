"""Effective draws per second of Markov chains: ours, BlackJAX's and NumPyro's."""
