"""How right answers are: one file a metric, all behind one face."""
