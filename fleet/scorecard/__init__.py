"""`baton scorecard`: checks twenty items of production readiness."""
