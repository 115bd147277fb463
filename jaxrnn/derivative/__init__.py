"""The derivative rule shared by all strategies, and linear maps with custom adjoints.

rule         `Recurrence`, one direction of one layer, and its derivative
linear_map   linear maps whose adjoint JAX cannot derive by transposition
blocks       gradients of a projection's weights, summed in blocks of rows
projections  products with W_ih and W_hh for a loop, by the CPU kernel or by XLA
"""
