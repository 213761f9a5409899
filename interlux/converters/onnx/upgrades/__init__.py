"""Older operators brought to their newest meaning, in which the IR's primitives are defined.

A rule is entered with the version from which it is no longer needed. It takes a node as written and gives the node that
means the same in that version, so that the rules of an operator chain; those that need other operators record them, or
become one. An operator without a rule means in all versions what it means today: newer versions added types,
attributes whose default is the old behaviour, or optional inputs (`UNCHANGED`, a reviewed list).
"""

from __future__ import annotations

from . import elementwise, neural, resizing, shaping
from .form import UPGRADES, Form, Rule, upgradable, upgrade

OLDEST_OPSET = 1

__all__ = (
    "OLDEST_OPSET",
    "UNCHANGED",
    "UPGRADES",
    "Form",
    "Rule",
    "elementwise",
    "neural",
    "resizing",
    "shaping",
    "upgradable",
    "upgrade",
)

# Operators with several versions whose older nodes mean the same today. Reviewed for onnx 1.23 (opset 28); a test
# compares the list with the schemas that onnx has. Scan, which has a graph inside, is the importer's own.
# fmt: off
UNCHANGED = frozenset(
    (
        "Acos", "Acosh", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "Attention", "AveragePool",
        "Bernoulli", "BitShift", "CastLike", "Celu", "Compress", "Constant", "ConstantOfShape", "Conv",
        "ConvTranspose", "Cos", "Cosh", "CumSum", "DeformConv", "DepthToSpace", "DequantizeLinear", "Det",
        "Einsum", "Erf", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
        "GlobalAveragePool", "GlobalMaxPool", "GreaterOrEqual", "HardSwish", "Identity", "If", "IsInf",
        "IsNaN", "LRN", "LessOrEqual", "Loop", "LpNormalization", "MatMul", "MaxPool", "MaxRoiPool",
        "MaxUnpool", "MeanVarianceNormalization", "Mish", "Mod", "Multinomial", "NegativeLogLikelihoodLoss",
        "NonMaxSuppression", "NonZero", "Optional", "OptionalGetElement", "OptionalHasElement",
        "QLinearMatMul", "QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike", "Range", "ReverseSequence", "Round", "ScatterElements", "ScatterND",
        "Shape", "Sign", "Sin", "Sinh", "Size", "SoftmaxCrossEntropyLoss", "Softplus", "Softsign",
        "SpaceToDepth", "SplitToSequence", "Tan", "ThresholdedRelu", "Transpose", "Unique", "Where",
    )
)
# fmt: on
