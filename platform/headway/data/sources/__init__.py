"""Read texts and rows from where users keep them: folders, files, datasets, memory."""
