"""Wire formats of the engines and of CRI: our .proto files, and under `gen` the modules made of them.

Never edit `gen`: change a .proto file and run `make proto`. Tests compare every message here with its
published original, and the committed modules with freshly generated ones.
"""
