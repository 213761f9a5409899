"""The fused CPU engine: a model as one native function, generated as LLVM IR and compiled in the process."""
