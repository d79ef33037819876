"""One agent trained by several processes, as ``torchrun`` starts them: what they tell each other."""
