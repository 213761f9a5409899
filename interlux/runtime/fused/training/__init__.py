"""Training on the CPU: forward pass, backward pass and optimiser as one native function.

recorder.py, fusion.py   a model in training mode as steps (steps.py) whose weights are parts of one vector
schedule.py              where values and gradients of a tile of samples lie
lookups.py, images.py, … what records integer inputs, convolutions and norms
products.py, …           code of every step, forward and backward
losses.py, optimizers.py what is minimised, and how parameters are updated
code.py, native.py       from a tape to a function, and its memory
checks.py, trainer.py    arguments, and what users see
"""

from .losses import Loss
from .optimizers import Optimizer
from .trainer import FusedGradient, FusedTrainer, fused_gradient, fused_trainer

__all__ = ["FusedGradient", "FusedTrainer", "Loss", "Optimizer", "fused_gradient", "fused_trainer"]
