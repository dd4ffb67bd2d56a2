"""`ipvsproxy` and `python -m ipvsproxy`."""

import sys

from ipvsproxy import cli


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(cli.main(sys.argv[1:], sys.argv[0]))


if __name__ == "__main__":
    main()
