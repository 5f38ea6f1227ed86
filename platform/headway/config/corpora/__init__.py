"""Settings of how text is cleaned before it becomes a corpus."""
