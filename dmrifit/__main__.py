"""Run the command line as ``python -m dmrifit``."""

from dmrifit.cli.program import main

if __name__ == "__main__":
    main()
