"""What is left out of corpora, and what is repaired: rules, copies, near copies."""
