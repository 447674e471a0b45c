"""Keyword spotting: synthetic spoken words, augmentation, evaluation sets, training."""
