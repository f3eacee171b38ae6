"""Fused steps on this processor: programs as LLVM IR, compiled in memory."""
