"""The nodes as seen by a router: links to them, their liveness and load, and the messages exchanged."""
