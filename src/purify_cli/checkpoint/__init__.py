"""Reading and writing checkpoints as files: nothing of a checkpoint is executed, only `locate` may use the network."""
