"""One module a verb: each parses its options and prints what came of them."""
