"""Packing of bytes: all of it is C."""

from _struct import *
from _struct import Struct, error
