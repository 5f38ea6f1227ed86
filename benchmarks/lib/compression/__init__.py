"""What `compress.py` compares: smaller models made by Headway, and by others."""
