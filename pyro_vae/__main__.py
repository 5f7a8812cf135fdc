"""`python -m pyro_vae` is the console script `pyro-vae`."""

from pyro_vae.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
