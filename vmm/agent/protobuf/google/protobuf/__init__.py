"""What generated modules and `common` use of protobuf, right above its C library (upb, in the pinned wheel).

Laid over the wheel in the guest's image. Left out: text format, JSON, reflection, services, other implementations.
"""
