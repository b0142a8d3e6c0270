"""Suites that every implementation of an interface passes, the fakes of the other tests included."""
