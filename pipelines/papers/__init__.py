"""Published tables and analyses. Nothing outside imports this room."""
