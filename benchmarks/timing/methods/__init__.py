"""Ways to train one VAE, a module each, run by `timing.worker` in a process of their own."""
