"""A policy on what is asked and answered, by classifiers that the operator chooses."""
