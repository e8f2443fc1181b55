"""The Triton kernels and the operators that PyTorch sees; the plain forms are a floor above."""
