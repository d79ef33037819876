"""What every test runs under."""

import os
import tempfile

import torch

# The tensors of the tests are tiny: a second thread only waits, and figures must not depend on the machine's cores.
torch.set_num_threads(1)

# The key that signs runs is the tests' own, for processes that they start too.
_folder = tempfile.TemporaryDirectory(prefix="recurl-tests-")
os.environ["XDG_CONFIG_HOME"] = _folder.name
