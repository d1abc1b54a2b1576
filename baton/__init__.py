"""The spine of Baton: what every service shares and none of them owns. Loads neither torch nor numpy."""
