"""`baton loadtest`: five phases of load, with a verdict for each."""
