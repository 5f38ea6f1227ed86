"""Jobs over more text than one machine holds, on Ray Data."""
