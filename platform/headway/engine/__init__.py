"""How an encoder learns: pure PyTorch and transformers, without Ray, MLflow or YAML."""
