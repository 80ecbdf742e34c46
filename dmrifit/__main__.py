"""Run the command line as ``python -m dmrifit``."""

from dmrifit.cli.start import main

if __name__ == "__main__":
    main()
