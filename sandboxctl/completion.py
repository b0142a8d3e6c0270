"""Shell completion, generated from the parser: what a verb takes stands in one place."""
