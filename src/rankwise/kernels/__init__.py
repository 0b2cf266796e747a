"""Faster versions of operations, which tests compare with the same in plain torch. Kernels take tensors; the only
modules they read are linear layers.
"""
