"""Rows of a token store, cut, paired and masked into batches to pretrain on."""
