"""What the compiled CPU kernels share: ``numba_tools`` compiles them, ``launcher`` runs them on tensors."""
