"""All layers, by name: `interlux.layers`."""

from .activations import HardTanh
from .attention import Attention
from .basic import ArrayData, Assign, Constant, Operator, Stored, gelu, identity, relu, sigmoid, tanh
from .containers import BranchLayer, Chain, Maxout, PairwiseFusion, Parallel, RepeatedLayer, SkipConnection
from .control import Gradient, If, Loop, Scan, SequenceMap
from .conv import Conv, ConvTranspose, flatten, global_mean_pool, max_pool, mean_pool
from .dense import Dense, Embedding
from .normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .random import Bernoulli, Dropout, Multinomial, RandomTensor, Uniform
from .recurrent import GRU, LSTM, RNN, Recurrent

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ArrayData",
    "Assign",
    "Attention",
    "BatchNorm",
    "Bernoulli",
    "BranchLayer",
    "Chain",
    "Constant",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Dropout",
    "Embedding",
    "Gradient",
    "GroupNorm",
    "HardTanh",
    "If",
    "InstanceNorm",
    "LayerNorm",
    "Loop",
    "Maxout",
    "Multinomial",
    "Operator",
    "PairwiseFusion",
    "Parallel",
    "RMSNorm",
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
