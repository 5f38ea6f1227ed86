"""How weights move: optimizers, which weights they treat alike, and the course of the learning rate."""
