"""Everything that two sandboxers share; imports nothing but generated protocol code."""
