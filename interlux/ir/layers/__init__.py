"""All layers, by name: `interlux.layers`."""

from .activations import HardTanh
from .attention import Attention
from .basic import ArrayData, Assign, Constant, Operator, Stored, gelu, identity, relu, sigmoid, tanh
from .containers import BranchLayer, Chain, Maxout, PairwiseFusion, Parallel, RepeatedLayer, SkipConnection
from .control import Gradient, If, Loop, Scan, SequenceMap
from .conv import Conv, flatten, global_mean_pool, max_pool, mean_pool
from .dense import Dense, Embedding
from .normalization import BatchNorm, LayerNorm
from .random import Bernoulli, Dropout, Multinomial, RandomTensor, Uniform
from .recurrent import LSTM, Recurrent

__all__ = [
    "LSTM",
    "ArrayData",
    "Assign",
    "Attention",
    "BatchNorm",
    "Bernoulli",
    "BranchLayer",
    "Chain",
    "Constant",
    "Conv",
    "Dense",
    "Dropout",
    "Embedding",
    "Gradient",
    "HardTanh",
    "If",
    "LayerNorm",
    "Loop",
    "Maxout",
    "Multinomial",
    "Operator",
    "PairwiseFusion",
    "Parallel",
    "RandomTensor",
    "Recurrent",
    "RepeatedLayer",
    "Scan",
    "SequenceMap",
    "SkipConnection",
    "Stored",
    "Uniform",
    "flatten",
    "gelu",
    "global_mean_pool",
    "identity",
    "max_pool",
    "mean_pool",
    "relu",
    "sigmoid",
    "tanh",
]
