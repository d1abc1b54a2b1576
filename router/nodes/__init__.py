"""The nodes as a router knows them: links, loads, who is alive, what is sent and heard."""
