"""How a rule is run: on the arrays themselves, or fused: one loop on the CPU, one launch on the GPU."""
