"""One signed folder that carries a model and its runtime to a machine without a network."""
