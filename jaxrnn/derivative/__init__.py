"""The derivative rule shared by all strategies, and linear maps with custom adjoints.

rule         `Recurrence`, one direction of one layer, and its derivative
linear_map   linear maps whose adjoint JAX cannot derive by transposition
"""
