"""A fleet in virtual time: nodes that compute nothing, but take as long as real ones, under the real choices."""
