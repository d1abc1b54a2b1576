"""`baton scorecard`: the twenty items of production readiness."""
