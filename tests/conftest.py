"""What every test runs under."""

import torch

# The tensors of the tests are tiny: a second thread only waits, and figures must not depend on the machine's cores.
torch.set_num_threads(1)
