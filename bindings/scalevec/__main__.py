import sys

from scalevec_command import main

sys.exit(main())
