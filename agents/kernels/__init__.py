"""What is compiled: the C sources, the one binding through which they are called, and their gradients for torch.

- ``binding``: finds the libraries, declares every function, and checks what is handed over;
- ``recurrent``: a layer of an RNN, LSTM or GRU over a block, and its acting step (``recurrent.c``);
- ``heads``: perceptrons, probabilities of actions, PPO's objective (``heads.c``);
- ``convolutions``: those of an image encoder, over bytes (``convolutions.c``);
- ``scan``: linear recurrences over a block (``scan.c``);
- ``reference``: the same recurrences in torch's operations, for derivatives and tools that need them;
- ``team.h``: tasks on torch's threads;
- ``aside``: what follows torch's operations, so that they must compute;
- ``plan``: the one place that decides how a policy is computed.

The libraries are built when the package is installed, if there is a C compiler; without them torch and NumPy serve.
"""

from agents.kernels.aside import in_torch

__all__ = ["in_torch"]
