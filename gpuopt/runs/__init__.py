"""Anybody's loop around an optimizer: recorded, saved, steered, resumed. It knows no network and no data set."""
