"""Models in forms that run without this project: what is traced, how it is written, that it scores alike."""
