"""How images become tokens, family by family: geometry of pixels, layouts, shapes of inputs."""
