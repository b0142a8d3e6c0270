"""What generated modules and upb look up below this name."""
