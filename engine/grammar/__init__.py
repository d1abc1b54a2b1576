"""Holding output to a grammar: compiled apart from the step loop, applied as a mask, a function of the tokens alone."""
