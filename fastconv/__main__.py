"""python -m fastconv: what was built, what runs here, and why not."""

import sys

from fastconv.doctor import main

if __name__ == "__main__":
    sys.exit(main())
