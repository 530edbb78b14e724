"""What a training run tells its owner, each thing a callback to name under `trainer.callbacks` in a YAML.

None of them touches the randomness that training draws from, and with any of them the weights come out bit for bit as
without.
"""

from promptnet.training.callbacks.gradient_watch import GradientWatch
from promptnet.training.callbacks.metrics_file import MetricsFile

__all__ = ["GradientWatch", "MetricsFile"]
