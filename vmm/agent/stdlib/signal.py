"""Signals by number: those of C, without their names as enumerations."""

from _signal import *
from _signal import pidfd_send_signal, set_wakeup_fd
