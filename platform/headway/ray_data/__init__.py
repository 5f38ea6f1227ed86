"""Jobs over more data than one process can hold, on all cores of a cluster by Ray Data."""
