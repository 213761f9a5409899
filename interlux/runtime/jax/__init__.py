"""The JAX backend: an interpreter that computes, `apply` for layers, and a runner for whole models."""

from .evaluation import apply
from .interpreter import JaxInterpreter
from .runner import JaxRunner

__all__ = ["JaxInterpreter", "JaxRunner", "apply"]
