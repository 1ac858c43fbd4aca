"""What serves a checkpoint and can be told to serve another (`rearguard.ports.Target`)."""
