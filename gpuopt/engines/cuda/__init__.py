"""Fused steps on NVIDIA GPUs: programs as CUDA C++."""
