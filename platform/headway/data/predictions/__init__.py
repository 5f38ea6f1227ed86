"""Files of rows to predict, read and written part by part."""
