"""`python -m localrank_cli`."""

from localrank_cli.cli.main import main

if __name__ == "__main__":
    main()
