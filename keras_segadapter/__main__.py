"""`python -m keras_segadapter`: the command `segadapter`."""

import sys

from keras_segadapter.cli import main

sys.exit(main())
