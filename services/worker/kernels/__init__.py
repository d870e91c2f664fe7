"""The arithmetic of rank-one components on plain tensors."""
