"""The one derivative rule of all strategies, and linear maps with adjoints of their own.

rule         `Recurrence`, one direction of one layer, and its derivative
linear_map   a linear map whose adjoint is computed in a way that JAX cannot find
"""
