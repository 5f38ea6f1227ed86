"""An encoder loaded to infer, in floats or in 8-bit integers."""
