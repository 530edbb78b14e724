"""What a training run is measured by: held-out people, scorers, gradients, speed, and the file the figures end in.

Pure functions and small classes; `promptnet.training.callbacks` connects them to the trainer.
"""
