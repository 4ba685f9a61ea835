"""The passes along the tree in compiled loops; those of torch's tensors are their oracle."""
