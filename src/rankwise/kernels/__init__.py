"""Faster versions of operations that a plain twin beside each of them defines. Kernels take tensors; the only modules
they read are linear layers.
"""
