"""Synthetic gliomas and experts who place boxes in them."""
