"""Reading and writing checkpoints as files: nothing of a checkpoint is executed here, and only `locate` may use the network."""
