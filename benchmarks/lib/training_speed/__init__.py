"""The parts of `train_speed.py`: what is trained, by whom, in which process, and the table."""
