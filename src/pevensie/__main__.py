"""``python -m pevensie`` is the command ``pevensie``."""

import sys

from pevensie.cli import main

sys.exit(main())
