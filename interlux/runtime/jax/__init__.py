"""The JAX backend: an interpreter that computes, `apply` for layers, and a runner for whole models."""

from .evaluation import JaxRunner, apply
from .interpreter import JaxInterpreter

__all__ = ["JaxInterpreter", "JaxRunner", "apply"]
