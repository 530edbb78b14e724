"""What a training run tells its owner, each thing a callback to name under `trainer.callbacks` in a YAML.

None of them touches the randomness that training draws from, and with any of them the weights come out bit for bit as
without.
"""

from promptnet.training.callbacks.collapse_alarm import CollapseAlarm
from promptnet.training.callbacks.gradient_watch import GradientWatch, TrainingDiverged
from promptnet.training.callbacks.log_to_wandb import LogToWandb
from promptnet.training.callbacks.metrics_file import MetricsFile
from promptnet.training.callbacks.model_card import WriteModelCard
from promptnet.training.callbacks.step_progress import StepProgress
from promptnet.training.callbacks.throughput import Throughput
from promptnet.training.callbacks.validation_images import ValidationImages
from promptnet.training.callbacks.validation_measures import ValidationMeasures

__all__ = [
    "CollapseAlarm",
    "GradientWatch",
    "LogToWandb",
    "MetricsFile",
    "StepProgress",
    "Throughput",
    "TrainingDiverged",
    "ValidationImages",
    "ValidationMeasures",
    "WriteModelCard",
]
