"""Documents → tokenizer → token store: what pretraining reads, prepared once."""
