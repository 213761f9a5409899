"""The fused CPU engine: a model as one native function, generated as LLVM IR and compiled in the process.

program.py, builder.py   a model's layers, executed by an interpreter that records steps (steps.py) on tensors with
                         static shapes for one sample (tensors.py); operators.py, recurrence.py and resizing.py
                         have ONNX's operators, folding.py computes what is known beforehand
passes.py                constants into weights, activations and pools into the steps before them, the arena
generate.py, kernels/    code of every step, for samples in the lanes, for a few samples, and for one
llvm.py, target.py       the builder of LLVM IR, and what a processor offers
vectormath.py, …         elementary functions and activations on values of the builder
engine.py, entry.py, …   from a program to a function, and its callers
"""
