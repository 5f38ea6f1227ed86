"""What a resumed run needs, saved and loaded."""
