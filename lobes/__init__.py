"""Building blocks shared by the recipes: one flat package, one topic per file."""
