"""What a person sees of a sweep: a table and MLflow's runs while it works, pictures and a page at its end."""
