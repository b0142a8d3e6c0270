"""Linux primitives: the only package that calls ctypes, ioctls and raw system calls.

Functions raise `OSError` with the path in `filename`, or a class of `common.errors` where the caller's
input is at fault. Nothing here knows pods or containers.
"""
