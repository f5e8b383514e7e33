"""EleutherAI's lm-eval over shipped files: its task definitions, our runtimes, data of a hub or of this machine."""
