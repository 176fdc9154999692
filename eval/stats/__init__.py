"""How sure a figure is: resampling by cluster, paired tests, corrections for many."""
