"""How a running loop is reached and what it may be asked for."""
